"""Detection metrics of images and pixels, exact: AUROC, AP, F1-max, AUPRO.

A ROC, PR or PRO curve turns only at the scores of the anomalous items: between two of them only the false positives
grow. So only the anomalous ones are ranked, and the (far more) normal ones are counted against them.

float32 maps go one by one through models.ranking.PixelRanking, which needs little memory beside the arguments and a
temporary file of 2 bytes a pixel; with maps that need not be in memory together, use it directly. Of other types the
normal pixels are sorted block by block (8 x the anomalous pixels, at least an image).

What is undefined is None, never NaN; each function says when.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.ranking import (
    FPR_LIMIT,
    Curve,
    Metrics,
    PixelRanking,
    PixelResult,
    official_area,
    official_thresholds,
    overlap_weights,
    up_to_limit,
)

SMALLEST_BLOCK = 1 << 18  # pixels; about one map of 518 x 518


def image_metrics(labels: Any, scores: Any) -> Metrics:
    """AUROC, AP and F1-max of image scores (N,) against labels (N,), 0 normal and 1 anomalous.

    All three are None where only one class is present: there is nothing to tell apart.
    """
    return _metrics(*_as_arrays(labels, scores, ndim=1))


def pixel_metrics(masks: Any, maps: Any) -> Metrics:
    """AUROC, AP and F1-max over all pixels of maps (N, H, W) against masks (N, H, W), anomalous where > 0.5.

    All three are None where the pixels are of one class: no anomalous pixel, or no background.
    """
    masks, maps = _checked(masks, maps, ndim=3)
    if maps.dtype == np.float32:
        return rank_pixels(masks, maps).pixel
    return _metrics(*_as_arrays(masks, maps, ndim=3))


def aupro(masks: Any, maps: Any, definition: Literal["official", "standard"] = "official") -> float | None:
    """Area under the per-region overlap curve up to a false positive rate of 0.3; masks and maps (N, H, W).

    official: as the authors' code has it. 200 equidistant thresholds, points with FPR < 0.3, their FPR rescaled from
    (min, max) to (0, 1), trapezoids. None also where fewer than two different FPRs lie below 0.3 (as for constant
    maps): there is nothing to rescale.
    standard: every distinct threshold, from (0, 0), interpolated linearly at FPR 0.3, divided by 0.3.
    Both: a region is an 8-connected component of one mask. None without a region or without background.
    """
    if definition not in ("official", "standard"):
        raise ValueError(f"AUPRO has the definitions 'official' and 'standard', not {definition!r}.")
    masks, maps = _checked(masks, maps, ndim=3)
    if maps.dtype == np.float32:
        return rank_pixels(masks, maps).aupro[definition]
    if definition == "official":
        return _official_aupro(*_as_arrays(masks, maps, ndim=3))
    curve = pro_curve(masks, maps)
    if curve is None:
        return None
    fpr, overlap = up_to_limit(*curve)
    return float(np.trapezoid(overlap, fpr)) / FPR_LIMIT


def pro_curve(masks: Any, maps: Any) -> Curve | None:
    """The exact PRO curve (FPR, mean overlap of the regions) from (0, 0) to (1, 1), every point where it turns.

    None without a region or without background.
    """
    positive, scores = _as_arrays(masks, maps, ndim=3)
    if _one_class(positive):
        return None
    values, inverse = np.unique(scores[positive], return_inverse=True)
    overlap = np.cumsum(np.bincount(inverse, weights=_overlap_weights(positive))[::-1])
    above, at_least = _background_counts(positive, scores, values[::-1])
    return _turning_points(above, at_least, positive.size - int(np.count_nonzero(positive)), overlap)


@dataclass(frozen=True)
class RankedCounts:
    """Cumulative counts at the T distinct scores of the positives, highest first; both classes are present."""

    thresholds: NDArray[Any]  # (T,) in the scores' dtype
    tp: NDArray[np.int64]  # (T,) positives >= threshold; the last is all of them
    fp: NDArray[np.int64]  # (T,) negatives >= threshold
    fp_above: NDArray[np.int64]  # (T,) negatives > threshold
    negatives: int

    @property
    def positives(self) -> int:
        return int(self.tp[-1])

    @property
    def auroc(self) -> float:
        """The chance that a positive outranks a negative, ties counting half; summed in integers."""
        outranked_twice = np.diff(self.tp, prepend=0) * (2 * self.negatives - self.fp - self.fp_above)
        return int(outranked_twice.sum()) / (2 * self.positives * self.negatives)

    @property
    def average_precision(self) -> float:
        return float(np.diff(self.tp, prepend=0) @ (self.tp / (self.tp + self.fp)) / self.positives)

    @property
    def f1_max(self) -> float:
        """The best F1 of all thresholds: lowering one to admit negatives alone cannot raise it."""
        return float(np.max(2 * self.tp / (self.tp + self.fp + self.positives)))

    def roc(self) -> Curve:
        """FPR and TPR from (0, 0) to (1, 1), every point where the curve turns."""
        return _turning_points(self.fp_above, self.fp, self.negatives, self.tp / self.positives)

    def precision_recall(self) -> Curve:
        """Precision and recall (T,) at the thresholds."""
        return self.tp / (self.tp + self.fp), self.tp / self.positives


def rank(labels: Any, scores: Any) -> RankedCounts | None:
    """Rank scores against labels of the same shape (any), anomalous where > 0.5; None where one class is missing."""
    positive, scores = _as_arrays(labels, scores)
    if _one_class(positive):
        return None
    values, counts = np.unique(scores[positive], return_counts=True)
    thresholds, tp = values[::-1], np.cumsum(counts[::-1])
    above, at_least = _background_counts(positive, scores, thresholds)
    return RankedCounts(thresholds, tp, at_least, above, negatives=positive.size - int(tp[-1]))


def _metrics(positive: NDArray[np.bool_], scores: NDArray[Any]) -> Metrics:
    ranked = rank(positive, scores)
    if ranked is None:
        return {"auroc": None, "ap": None, "f1_max": None}
    return {"auroc": ranked.auroc, "ap": ranked.average_precision, "f1_max": ranked.f1_max}


def rank_pixels(masks: NDArray[Any], maps: NDArray[np.float32]) -> PixelResult:
    """All pixel metrics and AUPRO of float32 maps (N, H, W) from one ranking; masks are bool, or above 0.5."""
    with PixelRanking() as ranking:
        for mask, anomaly_map in zip(masks, maps, strict=True):
            ranking.add(mask if mask.dtype == bool else mask > 0.5, anomaly_map)
        return ranking.result()


def _as_arrays(labels: Any, scores: Any, ndim: int | None = None) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Labels as booleans (> 0.5) and finite scores in their own dtype, of one shape; (N, 1, H, W) becomes (N, H, W)."""
    labels, scores = _checked(labels, scores, ndim)
    if scores.size and not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        raise ValueError("Scores must be finite: NaN or infinity cannot be ranked.")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError("Labels must be numbers: NaN is neither normal nor anomalous.")
    return labels if labels.dtype == bool else labels > 0.5, scores


def _checked(labels: Any, scores: Any, ndim: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Arrays of numbers of one shape, without a channel axis."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if ndim == 3:
        labels, scores = (a[:, 0] if a.ndim == 4 and a.shape[1] == 1 else a for a in (labels, scores))
    if labels.shape != scores.shape or ndim not in (None, scores.ndim):
        wanted = {1: "labels and scores (N,)", 3: "masks and maps (N, H, W)"}.get(ndim or 0, "labels and scores")
        raise ValueError(f"Expected {wanted} of one shape, got {labels.shape} and {scores.shape}.")
    if labels.dtype.kind not in "biuf" or scores.dtype.kind not in "biuf":
        raise ValueError(f"Expected numbers, got labels of {labels.dtype} and scores of {scores.dtype}.")
    return labels, scores


def _one_class(positive: NDArray[np.bool_]) -> bool:
    return np.count_nonzero(positive) in (0, positive.size)


def _background_counts(
    positive: NDArray[np.bool_], scores: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(V,), (V,): how many of the scores where not `positive` are > and >= each of the values (V,)."""
    above, at_least = np.zeros((2, len(values)), dtype=np.int64)
    block = max(SMALLEST_BLOCK, 8 * len(values))  # sorting one then costs about as much as the look-ups in it
    step = max(1, block // max(1, scores[:1].size))  # in items of the first axis
    for start in range(0, len(scores), step):
        background = np.sort(scores[start : start + step][~positive[start : start + step]])
        above += background.size - np.searchsorted(background, values, side="right")
        at_least += background.size - np.searchsorted(background, values, side="left")
    return above, at_least


def _overlap_weights(positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What each positive pixel, in C order, adds to the mean overlap: 1 / (area of its region x number of regions)."""
    weights, regions = zip(*map(overlap_weights, positive), strict=True)
    return np.concatenate(weights) / sum(regions)


def _official_aupro(positive: NDArray[np.bool_], maps: NDArray[Any]) -> float | None:
    if _one_class(positive):
        return None
    low, high = maps.min(), maps.max()
    if maps.dtype.kind != "f":
        low, high = int(low), int(high)  # small integers would overflow in the difference
    thresholds = official_thresholds(low, high)
    above, _ = _background_counts(positive, maps, thresholds)
    fpr = above / (positive.size - np.count_nonzero(positive))
    exceeded = np.searchsorted(thresholds, maps[positive])  # the number of thresholds that each positive pixel exceeds
    overlap = np.bincount(exceeded, weights=_overlap_weights(positive), minlength=len(thresholds) + 1)
    return official_area(fpr, np.cumsum(overlap[::-1])[::-1][1:])


def _turning_points(above: NDArray[Any], at_least: NDArray[Any], negatives: int, rate: NDArray[Any]) -> Curve:
    """Two points a threshold: the FPR just above it with the rate so far, and the FPR at it with its own rate (T,)."""
    fpr = np.stack([above, at_least], axis=1).ravel() / negatives  # 2T
    rates = np.stack([np.append(0, rate[:-1]), rate], axis=1).ravel()  # 2T
    return np.concatenate([[0], fpr, [1]]), np.concatenate([[0], rates, [1]])
