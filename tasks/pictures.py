"""Pictures of scored images: heat over the image, with the ground truth's outline.

Heat is on one absolute scale, the abnormal probability from 0 to 1: a quiet image stays dark.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from models.detector import DetectorConfig
from models.maps import map_at
from models.preprocess import binary_mask
from tasks.errors import InputError
from tasks.images import alone_if_huge, count_pixels, decode_image, read_mask, viewed
from tasks.layouts import read_version


def image_and_heat(
    row: Mapping[str, Any], grid: np.ndarray, truth: str | None, config: DetectorConfig, side: int
) -> tuple[Image.Image, Image.Image]:
    """A scored image (row: uri, etag), its longer side at most `side`, and its heat map; truth: the mask's URI.

    Raises UnreadableImage where the image that was scored can no longer be read.
    """
    image, _ = read_thumbnail(row, side)
    heat = overlay(image, probability_at(grid, image.height, image.width, config))
    lines = truth_outline(truth, image.size)
    return image, paste(heat, lines) if lines else heat


def read_thumbnail(row: Mapping[str, Any], side: int) -> tuple[Image.Image, tuple[int, int]]:
    """The object version of a row (uri, etag) as a viewer shows it, in RGB, its longer side at most `side`; its own size.

    Raises UnreadableImage.
    """
    data = read_version(row)
    with alone_if_huge(count_pixels(data)):
        image = viewed(decode_image(data))
        size = image.size
        image.thumbnail((side, side))
        return image.convert("RGB"), size


def probability_at(grid: np.ndarray, height: int, width: int, config: DetectorConfig) -> NDArray[np.float32]:
    """The abnormal probability (height, width) in [0, 1], the mean over the feature layers."""
    values = map_at(grid, height, width, config.image_size, config.sigma)
    return np.divide(values, len(config.feature_layers), dtype=np.float32)


def overlay(image: Image.Image, probability: NDArray[np.float32]) -> Image.Image:
    """Heat over a grey copy of the image; probability (H, W) in [0, 1]."""
    return paste(image.convert("L").convert("RGB"), heat_layer(probability))


def heat_layer(probability: NDArray[np.float32]) -> Image.Image:
    """RGBA: a probability (H, W) in [0, 1] sets both colour and opacity, the same in every image."""
    colours = colormaps["inferno"](np.clip(probability, 0, 1))
    colours[..., 3] = np.clip(0.25 + 0.6 * probability, 0, 0.85)
    return Image.fromarray((colours * 255).round().astype(np.uint8), "RGBA")


def truth_outline(uri: str | None, size: tuple[int, int]) -> Image.Image | None:
    """The outline of the ground-truth mask at this URI; None where there is none, or none that can be read any more."""
    try:
        return outline(read_mask(uri), size) if uri else None
    except (InputError, PermissionError):  # it may be archived
        return None


def outline(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGBA of this (width, height): the outline of the ground truth in cyan, all else transparent."""
    region = np.asarray(Image.fromarray(binary_mask(mask)).resize(size, Image.Resampling.NEAREST))
    pixels = np.zeros((*region.shape, 4), np.uint8)
    pixels[region & ~binary_erosion(region)] = (0, 230, 230, 255)
    return Image.fromarray(pixels, "RGBA")


def paste(image: Image.Image, layer: Image.Image) -> Image.Image:
    """An RGBA layer over an image of its size."""
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images of one size, a line of white between them."""
    both = Image.new("RGB", (left.width + 4 + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 4, 0))
    return both


def data_uri(image: Image.Image, format: str = "JPEG", **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
