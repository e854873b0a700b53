"""Drift: whether scores still come from the distribution of a reference, by a two-sample Kolmogorov-Smirnov test.

The level is that of all tests at once: with k classes each is tested at LEVEL / k (Bonferroni), so that of a thousand
nights in which nothing has changed one is flagged, however many classes there are. With many images any difference is
significant, so the distributions must also lie apart by DISTANCE. With few none is: 20 images against a large reference
are flagged at a distance of about 0.45, 100 of one class at 0.2. What moves is the bulk of the scores (light, focus, a new
product), not their tail: some more defects than usual are decisions, not drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

LEVEL = 0.001
DISTANCE = 0.15  # largest difference of the two distribution functions, 0 to 1
SMALLEST = 20  # images of a class: fewer are not tested


@dataclass(frozen=True)
class Drift:
    """The test of one class: numbers of scores, distance of the distributions in [0, 1], p-value, whether it is flagged."""

    images: int
    reference: int
    distance: float
    p_value: float
    moved: bool


def find_drift(
    reference: Mapping[str, NDArray[np.float64]], scores: Mapping[str, NDArray[np.float64]]
) -> dict[str, Drift]:
    """By class, of the classes that have a reference and at least SMALLEST scores (n,)."""
    tested = {name: found for name, found in scores.items() if name in reference and len(found) >= SMALLEST}
    return {name: compare(reference[name], found, LEVEL / len(tested)) for name, found in tested.items()}


def compare(reference: NDArray[np.float64], scores: NDArray[np.float64], level: float) -> Drift:
    result = ks_2samp(reference, scores, method="asymp")
    distance, p_value = float(result.statistic), float(result.pvalue)
    return Drift(len(scores), len(reference), distance, p_value, p_value < level and distance >= DISTANCE)
