"""From a patch grid to a binary mask at the image's own size, and the connected regions of it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


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
    inside = labels[mask] - 1  # the region of each pixel of the mask
    areas = np.bincount(inside, minlength=len(boxes))
    peaks = np.full(len(boxes), -np.inf, np.float32)
    np.maximum.at(peaks, inside, anomaly_map[mask])
    regions = [Region(*box, int(area), float(peak)) for box, area, peak in zip(boxes, areas, peaks, strict=True)]
    return sorted(regions, key=lambda region: (-region.peak, region.y, region.x))


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[tuple[int, int, int, int]]]:
    """(H, W) with the number of each pixel's region, 0 outside, and the box (x, y, w, h) of each from number 1 on.

    A box is that of one region: one that joins its left and right side and one that joins top and bottom would touch.
    """
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(labels)
    return labels, [(c.start, r.start, c.stop - c.start, r.stop - r.start) for r, c in boxes]
