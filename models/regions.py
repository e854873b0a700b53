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
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    peaks = ndimage.maximum(anomaly_map, labels, numbers)
    regions = [
        Region(
            box[1].start, box[0].start, box[1].stop - box[1].start, box[0].stop - box[0].start, int(area), float(peak)
        )
        for box, area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True)
    ]
    return sorted(regions, key=lambda region: (-region.peak, region.y, region.x))
