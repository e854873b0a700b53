"""Two small matrix products are bilinear interpolation followed by SciPy's Gaussian."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from models.maps import map_at, upsample


def slow(grid: torch.Tensor, size: int, sigma: float) -> np.ndarray:
    up = F.interpolate(grid[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return gaussian_filter(up.numpy(), sigma=sigma)


@pytest.mark.parametrize(("size", "grid"), [(518, 37), (96, 6), (224, 7), (20, 20), (40, 1)])
@pytest.mark.parametrize("sigma", [4.0, 1.3])
def test_upsampling_is_interpolation_then_the_gaussian(size: int, grid: int, sigma: float) -> None:
    grids = torch.rand(3, grid, grid, generator=torch.Generator().manual_seed(0))
    maps = upsample(grids, size, sigma)
    for found, one in zip(maps, grids, strict=True):
        np.testing.assert_allclose(found.numpy(), slow(one, size, sigma), atol=1e-6, rtol=0)


def test_a_map_at_the_models_size_is_the_models_map() -> None:
    grid = torch.rand(37, 37, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(map_at(grid, 518, 518, 518, 4.0), upsample(grid, 518, 4.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 400), (333, 777), (518, 100), (1200, 900)])
def test_a_map_at_any_size_is_the_models_map_brought_there_bilinearly(height: int, width: int) -> None:
    grid = torch.rand(16, 16, generator=torch.Generator().manual_seed(2))
    at_model = upsample(grid, 256, 4.0)[None, None]
    expected = F.interpolate(at_model, (height, width), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(map_at(grid, height, width, 256, 4.0), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 700), (130, 97), (518, 518), (1024, 640)])
def test_a_map_never_exceeds_its_grid_not_even_by_rounding(height: int, width: int) -> None:
    for seed in range(20):
        grid = np.random.default_rng(seed).random((37, 37), np.float32)
        grid[seed : seed + 3] = grid.max()
        assert map_at(grid, height, width, 518, 4.0).max() <= grid.max()
    flat = np.full((37, 37), 0.1, np.float32)
    assert map_at(flat, height, width, 518, 4.0).max() <= np.float32(0.1)
