"""Bootstrap intervals of image metrics: how much they would move with other images of the same kind.

Those of pixel metrics are in models.pixel_intervals.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 1 << 22  # images in all resamples that are drawn at a time

Interval = tuple[float, float]
Draws = dict[str, NDArray[np.float64]]  # a metric (resamples,)


def bootstrap_image_metrics(
    labels: Any, scores: Any, resamples: int = RESAMPLES, seed: int | list[int] = 0
) -> Draws | None:
    """AUROC, AP and F1-max (resamples,) of images drawn with replacement; labels (N,) 0 or 1, scores (N,).

    As many normal and as many anomalous images are drawn as there are, so that every resample has both. None where one
    class is missing. The draws depend on labels and seed alone: those of two detectors are paired, and their difference
    has an interval of its own. A resample is a count for each image: the images are ranked once.
    """
    positive, scores = np.asarray(labels) > 0.5, np.asarray(scores)
    if not positive.any() or positive.all():
        return None
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of the images that share a score
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(scores))
    blocks = [
        _metrics(
            np.cumsum(_draw(rng, positive, min(step, resamples - start))[:, order], axis=1)[:, last],
            np.cumsum(_draw(rng, ~positive, min(step, resamples - start))[:, order], axis=1)[:, last],
        )
        for start in range(0, resamples, step)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def interval(values: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """The percentile interval of bootstrapped values (resamples,), of those that are not NaN; one has to be."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draw(rng: np.random.Generator, members: NDArray[np.bool_], resamples: int) -> NDArray[np.int64]:
    """(resamples, N): how often each image was drawn; only members are, each time as many as there are."""
    counts = np.zeros((resamples, len(members)), np.int64)
    size = int(members.sum())
    counts[:, members] = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
    return counts


def _metrics(tp: NDArray[np.int64], fp: NDArray[np.int64]) -> Draws:
    """Metrics (R,) from the cumulative counts (R, T) at the distinct scores, highest first."""
    positives, negatives = tp[:, -1], fp[:, -1]
    gained, fp_above = np.diff(tp, axis=1, prepend=0), np.concatenate([np.zeros_like(fp[:, :1]), fp[:, :-1]], axis=1)
    predicted = tp + fp
    precision = tp / np.maximum(predicted, 1)  # nothing is gained where nothing is predicted
    outranked_twice = (gained * (2 * negatives[:, None] - fp - fp_above)).sum(axis=1)
    return {
        "auroc": outranked_twice / (2 * positives * negatives),
        "ap": (gained * precision).sum(axis=1) / positives,
        "f1_max": (2 * tp / (predicted + positives[:, None])).max(axis=1),
    }
