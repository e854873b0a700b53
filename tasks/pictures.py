"""Pictures of scored images: heat over the image, with the ground truth's outline.

Heat is on one absolute scale, the abnormal probability from 0 to 1: a quiet image stays dark.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import binary_erosion

from models.detector import DetectorConfig
from models.maps import map_at
from models.preprocess import binary_mask
from tasks.images import decode_image, read_mask, viewed
from tasks.layouts import read_version


def image_and_heat(
    row: Mapping[str, Any], grid: np.ndarray, truth: str | None, config: DetectorConfig, side: int
) -> tuple[Image.Image, Image.Image]:
    """A scored image (row: uri, etag), its longer side at most `side`, and its heat map; truth: the mask's URI.

    Raises UnreadableImage where the image that was scored can no longer be read.
    """
    image = viewed(decode_image(read_version(row))).convert("RGB")
    image.thumbnail((side, side))
    values = map_at(grid, image.height, image.width, config.image_size, config.sigma)
    heat = overlay(image, values / len(config.feature_layers))
    return image, outline(heat, read_mask(truth)) if truth else heat


def overlay(image: Image.Image, probability: np.ndarray) -> Image.Image:
    """Heat over a grey copy of the image; probability (H, W) in [0, 1] sets both colour and opacity."""
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    colours = colormaps["inferno"](np.clip(probability, 0, 1))[..., :3].astype(np.float32) * 255
    alpha = np.clip(0.25 + 0.6 * probability, 0, 0.85)[..., None]
    return Image.fromarray((grey * (1 - alpha) + colours * alpha).round().astype(np.uint8))


def outline(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with the ground truth's outline in cyan."""
    inside = Image.fromarray(binary_mask(mask)).resize(image.size, Image.Resampling.NEAREST)
    region = np.asarray(inside)
    pixels = np.array(image)
    pixels[region & ~binary_erosion(region)] = (0, 230, 230)
    return Image.fromarray(pixels)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images of one size, a line of white between them."""
    both = Image.new("RGB", (left.width + 4 + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 4, 0))
    return both
