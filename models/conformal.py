"""Decisions without labels: split-conformal thresholds and p-values of scores against an unlabelled reference.

If a new normal score is exchangeable with the n reference scores, it exceeds the threshold with a probability of at most
the stated rate, whatever the distribution (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with conformal
p-values").

What contamination of the reference does. The reference is unlabelled and may hold anomalies. They score high, occupy the
top of the reference and push the threshold up: the observed false-alarm rate falls *below* the stated one, and defects
are missed instead. With a share c of anomalies that all score above the normal ones, stated rate a, the threshold leaves
a share max(0, a - c) / (1 - c) of normal images above it. For c >= a no normal image raises an alarm any more, and the
threshold lies among the anomalies: some of those are missed too. So the rate is a bound that holds under contamination,
at the price of sensitivity: state a rate above the share of defects that the reference is thought to hold, or take the
known defects out of it. Anomalies that score *low* (that the model does not see) do the opposite, and little: the rate
becomes at most a / (1 - c).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001: the product is an integer up to this


def smallest_reference(rate: float) -> int:
    """How many reference scores the rate needs: with fewer no score is ever extreme enough.

    rate: in (0, 1); ValueError otherwise.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a false-alarm rate lies between 0 and 1, not at {rate}")
    return math.ceil(1 / rate - ROUNDING) - 1


def conformal_threshold(reference: ArrayLike, rate: float) -> float:
    """The score that a new normal image exceeds with a probability of at most `rate` in (0, 1).

    reference: (n,) finite scores; the threshold is the ceil((n + 1)(1 - rate))-th smallest of them. Ties make it
    conservative. ValueError where n < 1 / rate - 1. `score > threshold` is the same decision as `p_value <= rate`.
    """
    ordered = np.sort(np.asarray(reference, np.float64))
    n, needed = len(ordered), smallest_reference(rate)
    if n < needed:
        raise ValueError(f"a false-alarm rate of {rate} needs {needed} reference scores, there are {n}")
    above = math.floor(rate * (n + 1) + ROUNDING) - 1  # reference scores that may lie above the threshold
    return float(ordered[n - 1 - above])


def conformal_p_values(reference: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """(m,) p-values of scores (m,) against the reference (n,): (1 + #{reference >= score}) / (n + 1), in (0, 1]."""
    ordered = np.sort(np.asarray(reference, np.float64))
    at_least = len(ordered) - np.searchsorted(ordered, np.asarray(scores, np.float64), side="left")
    return (1 + at_least) / (len(ordered) + 1)
