"""Run-length encoding, against the plain way and against COCO's own reader."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from models.regions import find_regions, label_regions
from tasks.rle import compress_counts, run_lengths


def plain_runs(mask: NDArray[np.bool_]) -> list[int]:
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def crops(mask: NDArray[np.bool_], x: int, y: int, w: int, h: int) -> NDArray[np.bool_]:
    return mask[y : y + h, x : x + w]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 9), (300, 400)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_runs_and_their_string_are_cocos(shape: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(7).random(shape) < density
    runs = run_lengths(mask, 0, 0, *shape)
    assert runs == plain_runs(mask)
    assert sum(runs) == mask.size
    encoded = {"size": list(shape), "counts": compress_counts(runs)}
    assert np.array_equal(coco.decode(encoded), mask)
    assert encoded["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_a_part_of_a_mask_lies_at_its_place() -> None:
    mask = np.zeros((50, 70), bool)
    mask[10:14, 60:70] = np.random.default_rng(1).random((4, 10)) < 0.5
    assert run_lengths(crops(mask, 58, 9, 12, 8), 58, 9, 50, 70) == plain_runs(mask)


def test_every_region_of_a_mask_has_a_box_of_its_own() -> None:
    rng = np.random.default_rng(3)
    for density in (0.1, 0.3, 0.5):
        mask = rng.random((60, 80)) < density
        labels, boxes = label_regions(mask)
        assert len(set(boxes)) == len(boxes) == labels.max()
        assert {region[:4] for region in find_regions(mask, mask.astype(np.float32))} == set(boxes)
