"""Bootstrap intervals of pixel metrics: whole images are drawn, never pixels, for those of one image are not independent.

A resample counts each image so and so often; its pixels are the sum of the images' histograms, each times its count. The
histograms of all images are never held: each is multiplied by its counts in all resamples and added to theirs. So maps
come one by one, as to models.ranking.PixelRanking, and memory is constant: some 60 MB with 1,000 resamples.

The bins are fixed before, by the range of all maps and a sample of their values. Their edges are the 200 thresholds of the
official AUPRO, and quantiles, the more of them the higher: so the official AUPRO of a resample has the thresholds of the
whole set, not those of its own range, and is exact for them. The other metrics take the pixels of a bin as equally mixed:
on maps of 518 x 518 AUROC and the standard AUPRO are within about 1e-5 of their values, AP and F1-max within 1e-3; F1-max
is below its value rather than above, because the highest point of a ragged curve is lost.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.intervals import RESAMPLES, Draws
from models.ranking import FPR_LIMIT, OFFICIAL_STEPS, official_area, overlap_weights

FINE = 256  # levels between two official thresholds, of which the edges of bins are chosen
LEVELS = OFFICIAL_STEPS * FINE
ABOVE = FINE * np.arange(OFFICIAL_STEPS) + 1  # the first level above each official threshold
QUANTILES, TAIL_QUANTILES, TAIL = 500, 400, 1e-5  # of all values; of the highest, down to this share
SAMPLED_IMAGES, SAMPLED_LINES = 128, 32  # about so many of each label, and of each every few rows and columns
BLOCK = 64  # images whose histograms are added at a time
CHUNK = 64  # resamples whose metrics are computed at a time


@dataclass(frozen=True)
class ValueBins:
    """Bins of map values: `starts` (K,) are levels, the first 0. Level 0 is the lowest value of all maps, level i what is
    above low + (i - 1) / scale and not above low + i / scale.
    """

    low: np.float32
    scale: np.float32
    starts: NDArray[np.int64]

    def levels(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.ceil((values - self.low) * self.scale).astype(np.int64).ravel()

    def histogram(self, levels: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[Any]:
        """(K,) of levels (n,)."""
        return np.add.reduceat(np.bincount(levels, weights, minlength=LEVELS + 2), self.starts)

    @property
    def official(self) -> NDArray[np.int64]:
        """(200,): the first bin above each official threshold."""
        return np.searchsorted(self.starts, ABOVE)


def bins_of(labels: Any, maps: Iterable[NDArray[np.float32]]) -> ValueBins:
    """Bins for maps (H, W) of images with these labels (N,), from one pass over the maps; ValueError for NaN, infinity."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    sample = array("f")  # one block of memory: small arrays between those of the maps would keep the maps' memory
    for wanted, anomaly_map in zip(in_sample(np.asarray(labels) > 0.5), maps, strict=True):
        low, high = np.minimum(low, anomaly_map.min()), np.maximum(high, anomaly_map.max())
        if wanted:
            rows, columns = (max(1, length // SAMPLED_LINES) for length in anomaly_map.shape)
            sample.frombytes(anomaly_map[rows // 2 :: rows, columns // 2 :: columns].tobytes())
    if not np.isfinite(high - low):
        raise ValueError("Scores must be finite: NaN or infinity has no bin.")
    scale = np.float32(min(LEVELS / float(high - low), float(np.finfo(np.float32).max)) if high > low else 0)
    levels = np.sort(ValueBins(low, scale, ABOVE).levels(np.frombuffer(sample, np.float32)))
    shares = np.append(np.linspace(0, 1, QUANTILES), 1 - np.geomspace(TAIL, 0.5, TAIL_QUANTILES))
    quantiles = levels[((len(levels) - 1) * shares).astype(int)]
    return ValueBins(low, scale, np.unique(np.concatenate([[0], ABOVE, quantiles])))


def in_sample(positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,): which images bins are made for, evenly of both labels."""
    chosen = np.zeros(len(positive), bool)
    for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        chosen[members[:: max(1, len(members) // SAMPLED_IMAGES)]] = True
    return chosen


class ImageCounts:
    """How often resamples (R,) drew each image, image by image: as many normal and as many anomalous ones as there are.

    Of n draws among m images the first gets Binomial(n, 1 / m), the second Binomial(what is left, 1 / (m - 1)) and so on:
    that is the multinomial distribution. The counts depend on the labels, their order and the seed alone.
    """

    def __init__(self, labels: Any, resamples: int, seed: int | list[int]) -> None:
        sizes = np.bincount(np.asarray(labels) > 0.5, minlength=2)
        self._rng = np.random.default_rng(seed)
        self._images_left = sizes.tolist()
        self._draws_left = np.repeat(sizes[:, None], resamples, axis=1)  # 2 R

    def next(self, label: int) -> NDArray[np.int64]:
        counts = self._rng.binomial(self._draws_left[label], 1 / self._images_left[label])
        self._images_left[label] -= 1
        self._draws_left[label] -= counts
        return counts


class PixelBootstrap:
    """Takes images one by one, in the order of their labels (N,), and gives the metrics of resamples of them all."""

    def __init__(self, labels: Any, bins: ValueBins, resamples: int = RESAMPLES, seed: int | list[int] = 0) -> None:
        self._labels = (np.asarray(labels) > 0.5).astype(int).tolist()
        self._bins, self._counts = bins, ImageCounts(labels, resamples, seed)
        self._sums = np.zeros((resamples, 3 * len(bins.starts) + 1))  # histograms: outside, inside, overlap; regions
        self._drawn = np.empty((resamples, BLOCK))  # of the images that wait, and their histograms
        self._histograms = np.empty((BLOCK, self._sums.shape[1]))
        self._images = self._waiting = 0

    def add(self, mask: NDArray[np.bool_], anomaly_map: NDArray[np.float32]) -> None:
        """The next image: ground truth (H, W) and map (H, W)."""
        levels, inside = self._bins.levels(anomaly_map), mask.ravel()
        weights, regions = overlap_weights(mask)
        anomalous = levels[inside]
        positives = self._bins.histogram(anomalous)
        parts = (
            self._bins.histogram(levels) - positives,
            positives,
            self._bins.histogram(anomalous, weights),
            [regions],
        )
        self._histograms[self._waiting] = np.concatenate(parts)
        self._drawn[:, self._waiting] = self._counts.next(self._labels[self._images])
        self._images, self._waiting = self._images + 1, self._waiting + 1
        if self._waiting == len(self._histograms):
            self._flush()

    def draws(self) -> Draws:
        """auroc, ap, f1_max, official and standard (R,), as PixelRanking names them; NaN where they are undefined.

        They can be where images are few: a resample may have no anomalous pixel, if some masks have none.
        """
        self._flush()
        chunks = [self._metrics(self._sums[i : i + CHUNK]) for i in range(0, len(self._sums), CHUNK)]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _flush(self) -> None:
        for i in range(0, len(self._sums), CHUNK):
            drawn = self._drawn[i : i + CHUNK, : self._waiting]
            self._sums[i : i + CHUNK] += drawn @ self._histograms[: self._waiting]  # (CHUNK, B) (B, 3K + 1)
        self._waiting = 0

    def _metrics(self, sums: NDArray[np.float64]) -> Draws:
        negative, positive, overlap = np.split(sums[:, -2::-1], 3, axis=1)[::-1]  # R K each, the highest bin first
        fp, tp, overlap = (np.cumsum(part, axis=1) for part in (negative, positive, overlap))
        with np.errstate(invalid="ignore"):  # 0 / 0
            fpr, overlap = fp / fp[:, -1:], overlap / sums[:, -1:]
            draws = binned_metrics(positive, negative, tp, fp) | {"standard": standard_area(fpr, overlap)}
        beyond = fpr.shape[1] - 1 - self._bins.official  # the last of the bins that are above the threshold
        areas = [official_area(*curve) for curve in zip(fpr[:, beyond], overlap[:, beyond], strict=True)]
        return draws | {"official": np.array(areas, float)}  # None becomes NaN


def binned_metrics(
    positive: NDArray[np.float64], negative: NDArray[np.float64], tp: NDArray[np.float64], fp: NDArray[np.float64]
) -> Draws:
    """AUROC, AP and F1-max (R,) from pixels in bins (R, K), the highest first, and their cumulative sums.

    Precision within a bin is that at its middle.
    """
    positives, negatives = tp[:, -1], fp[:, -1]
    predicted = tp + fp - (positive + negative) / 2
    f1 = 2 * tp / np.maximum(tp + fp + positives[:, None], 1)
    precision = (tp - positive / 2) / np.where(predicted > 0, predicted, 1)
    return {
        "auroc": (positive * (negatives[:, None] - fp + negative / 2)).sum(axis=1) / (positives * negatives),
        "ap": (positive * precision).sum(axis=1) * negatives / (positives * negatives),
        "f1_max": np.where(positives * negatives > 0, f1.max(axis=1), np.nan),
    }


def standard_area(fpr: NDArray[np.float64], overlap: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,): the area under curves (R, K) from (0, 0) to the limit, where they are interpolated, divided by it."""
    width, rise = np.diff(fpr, axis=1, prepend=0), np.diff(overlap, axis=1, prepend=0)
    share = np.clip((FPR_LIMIT - fpr + width) / np.where(width > 0, width, 1), 0, 1)  # of each step, up to the limit
    return (share * width * (overlap - rise + share * rise / 2)).sum(axis=1) / FPR_LIMIT


def bootstrap_pixel_metrics(
    labels: Any, masks: Any, maps: Any, resamples: int = RESAMPLES, seed: int | list[int] = 0
) -> Draws:
    """Of labels (N,) of images, masks (N, H, W) bool and maps (N, H, W) float32 at once; see PixelBootstrap.draws."""
    bootstrap = PixelBootstrap(labels, bins_of(labels, maps), resamples, seed)
    for mask, anomaly_map in zip(masks, maps, strict=True):
        bootstrap.add(mask, anomaly_map)
    return bootstrap.draws()
