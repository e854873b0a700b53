"""Images and masks as the published code prepares them, after making every odd mode what a viewer would show.

8-bit L, RGB and opaque RGBA images agree with the published preprocessing bit for bit; models.viewing names what differs.
"""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.viewing import as_viewed

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's channel statistics
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) float32: squashed to a square (bicubic, antialiased), normalised with CLIP's statistics."""
    return normalise(to_square(image, size))


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the pixels that `normalise` takes; the aspect ratio is not kept."""
    resized = as_viewed(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(resized.convert("RGB"))


def normalise(pixels: np.ndarray | Tensor) -> Tensor:
    """(…, S, S, 3) uint8 -> (…, 3, S, S) float32."""
    x = torch.as_tensor(pixels).movedim(-1, -3).float().div(255)
    mean, std = channel_statistics(x.device)
    return x.sub(mean).div(std).contiguous()


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # kept, whoever asks first
def channel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and STD, (3, 1, 1) each, once a device: sending them with each batch would make a GPU wait for the host."""
    return torch.tensor(MEAN, device=device).view(3, 1, 1), torch.tensor(STD, device=device).view(3, 1, 1)


def preprocess_mask(mask: Image.Image, size: int) -> np.ndarray:
    """(size, size) bool ground truth of the published protocol: any value above 0 is defect; bilinear, antialiased, > 0.5.

    Defects thinner than about half a pixel of the result vanish, as they do in the published code.
    """
    binary = binary_mask(mask)
    resized = Image.fromarray(binary.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127


def binary_mask(mask: Image.Image) -> np.ndarray:
    """(H, W) bool at the mask's own size: everything above 0 is defect."""
    if mask.mode not in ("1", "L", "I", "I;16", "F"):
        mask = mask.convert("L")
    return np.asarray(mask) > 0
