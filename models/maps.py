"""From the patch grid to maps: bilinear upsampling and Gaussian smoothing, both linear and separable.

A map of any size is A @ grid @ B.T with two small dense matrices, so everything per pixel can be derived again from the
stored grid (37 x 37 at the paper's size), exactly and without the model.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

STRIP = 1024  # rows of a map that are made at once


@lru_cache(maxsize=64)
def resize_matrix(size: int, grid: int) -> np.ndarray:
    """(size, grid) float64: bilinear interpolation, align_corners False, no antialiasing, as F.interpolate has it."""
    basis = torch.eye(grid)[None]  # 1 g g: one channel a grid column
    return F.interpolate(basis, size=size, mode="linear", align_corners=False)[0].T.double().numpy()


@lru_cache(maxsize=64)
def map_matrix(size: int, grid: int, sigma: float) -> np.ndarray:
    """(size, grid) float64: upsampling to `size`, then scipy's Gaussian (reflect, truncate 4) with sigma in map pixels."""
    matrix = resize_matrix(size, grid)
    return gaussian_filter1d(matrix, sigma, axis=0) if sigma else matrix


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # kept for training too, whoever asks first
def map_tensor(size: int, grid: int, sigma: float, device: str) -> Tensor:
    return torch.tensor(map_matrix(size, grid, sigma), dtype=torch.float32, device=device)


def upsample(grids: Tensor, size: int, sigma: float = 0.0) -> Tensor:
    """Anomaly maps (…, size, size) from patch grids (…, g, g); sigma in pixels of the result, 0 for no smoothing."""
    matrix = map_tensor(size, grids.shape[-1], sigma, str(grids.device))
    return matrix @ grids @ matrix.T


def map_at(grid: Any, height: int, width: int, image_size: int, sigma: float) -> np.ndarray:
    """The smoothed map of a patch grid (g, g) at any height x width, float32.

    The Gaussian keeps its extent on the object: sigma pixels at the model's image_size.
    """
    grid = np.asarray(grid)
    rows = resample_matrix(height, grid.shape[0], image_size, sigma)
    columns = resample_matrix(width, grid.shape[1], image_size, sigma)
    anomaly_map = np.empty((height, width), np.float32)
    for start in range(0, height, STRIP):  # float64 products of a whole scan would take twice its map
        strip = np.s_[start : start + STRIP]
        anomaly_map[strip] = rows[strip] @ grid @ columns.T
    return anomaly_map


@lru_cache(maxsize=64)
def resample_matrix(size: int, grid: int, image_size: int, sigma: float) -> np.ndarray:
    """(size, grid): the model's map (upsampled and smoothed at image_size), then brought to `size` bilinearly."""
    model_map = map_matrix(image_size, grid, sigma)
    if size == image_size:
        return model_map
    columns = torch.from_numpy(model_map.T.copy())[None]  # 1 g S: one channel a column of the patch grid
    resized = F.interpolate(columns, size=size, mode="linear", align_corners=False)[0].T
    return np.ascontiguousarray(resized.numpy())
