"""From a patch grid to a binary mask at the image's own size, and the connected regions of it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

STRIP = 1024  # rows that are looked at together: the pixels of a whole scan's mask would be in memory thrice


class Region(NamedTuple):
    """Bounding box (x, y, w, h) and area in pixels of the mask, and the highest value of the map in it."""

    x: int
    y: int
    w: int
    h: int
    area: int
    peak: float


def find_regions(mask: NDArray[np.bool_], anomaly_map: NDArray[np.float32]) -> list[Region]:
    """8-connected regions of a mask (H, W) with their peaks in the map (H, W), highest peak first."""
    labels, boxes = label_regions(mask)
    if not boxes:
        return []
    areas, peaks = np.zeros(len(boxes) + 1, np.int64), np.full(len(boxes) + 1, -np.inf, np.float32)
    for start in range(0, len(mask), STRIP):
        strip = np.s_[start : start + STRIP]
        inside = labels[strip][mask[strip]]  # the number of the region of each pixel
        areas += np.bincount(inside, minlength=len(areas))
        np.maximum.at(peaks, inside, anomaly_map[strip][mask[strip]])
    regions = [Region(*box, int(areas[n]), float(peaks[n])) for n, box in enumerate(boxes, start=1)]
    return sorted(regions, key=lambda region: (-region.peak, region.y, region.x))


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[tuple[int, int, int, int]]]:
    """(H, W) with the number of each pixel's region, 0 outside, and the box (x, y, w, h) of each from number 1 on.

    A box is that of one region: one that joins its left and right side and one that joins top and bottom would touch.
    """
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    return labels, [(c.start, r.start, c.stop - c.start, r.stop - r.start) for r, c in boxes]
