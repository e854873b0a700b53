"""Pixels of any number of maps, ranked exactly in bounded memory: what pixel metrics and AUPRO are computed from.

float32 has an order-preserving 32-bit key. Of each pixel the lower half of its key is spilled to a temporary file,
grouped by the upper half (a radix partition, half a million pixels at a time); how many pixels each of the 65,536
upper halves holds is counted on the way. Afterwards the upper halves that hold anomalous pixels are taken from the
highest down: counting their lower halves gives the numbers of anomalous and normal pixels at every distinct score, so
nothing is rounded, binned or sampled. The rest is known from the counts without being read.

Memory is constant (some 60 MB, whatever the number of maps); the file takes 2 bytes a pixel, 10 an anomalous one, in the
folder for temporary files ($TMPDIR).
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Metrics = dict[str, float | None]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

FPR_LIMIT = 0.3  # AUPRO is taken up to this false positive rate
OFFICIAL_STEPS = 200  # thresholds of the published AUPRO
RUN = 1 << 19  # pixels that are grouped at a time; about two maps of 518 x 518
HALVES = 1 << 16  # values that half a key can have
FEW = 1 << 12  # keys that are sorted quicker than counted in a table of all HALVES
CURVE_STEPS = 1000  # what a kept point of a PRO curve differs by from the one before, in either direction: 1 / this


@dataclass(frozen=True)
class PixelResult:
    """Pixel metrics, AUPRO by definition, and the PRO curve up to the limit, thinned for drawing.

    What is undefined is None, and `undefined` says why by name: "pixel" for all of them, else the definition.
    """

    pixel: Metrics
    aupro: Metrics
    curve: Curve | None
    undefined: dict[str, str]


class PixelRanking:
    """Takes maps one by one and gives the metrics of them all; a context manager that owns a temporary file or two."""

    def __init__(self) -> None:
        self._normal, self._anomalous = HalfKeys(), HalfKeys(weighted=True)
        self._low, self._high = np.float32(np.inf), np.float32(-np.inf)
        self._regions = 0

    def __enter__(self) -> "PixelRanking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._normal.close()
        self._anomalous.close()

    def add(self, mask: NDArray[np.bool_], anomaly_map: NDArray[np.float32]) -> None:
        """One image: ground truth (H, W) and map (H, W); ValueError for other shapes or types, NaN and infinity."""
        if mask.shape != anomaly_map.shape or mask.ndim != 2:
            raise ValueError(f"Expected mask and map (H, W) of one shape, got {mask.shape} and {anomaly_map.shape}.")
        if mask.dtype != np.bool_ or anomaly_map.dtype != np.float32:
            raise ValueError(f"Expected a bool mask and a float32 map, got {mask.dtype} and {anomaly_map.dtype}.")
        if not anomaly_map.size:
            return
        low, high = anomaly_map.min(), anomaly_map.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("Scores must be finite: NaN or infinity cannot be ranked.")
        self._low, self._high = min(self._low, low), max(self._high, high)
        keys = to_keys(anomaly_map)
        self._normal.append(keys[~mask] if mask.any() else keys.ravel())
        weights, regions = overlap_weights(mask)
        self._anomalous.append(keys[mask], weights)
        self._regions += regions

    def result(self) -> PixelResult:
        """The metrics of all maps so far."""
        self._normal.flush()
        self._anomalous.flush()
        positives, negatives = int(self._anomalous.totals.sum()), int(self._normal.totals.sum())
        if not (positives and negatives):
            reason = one_class_reason(positives, negatives, "pixel")
            nothing: Metrics = dict.fromkeys(("auroc", "ap", "f1_max"))
            return PixelResult(nothing, dict.fromkeys(("official", "standard")), None, {"pixel": reason})
        thresholds = official_thresholds(self._low, self._high)
        sums, pro = RankSums(positives, negatives), PROArea()
        false_positives, overlap = np.zeros((2, len(thresholds)))  # beyond each threshold
        for piece in self._pieces(to_keys(rounded_down(thresholds))):
            sums.add(piece)
            pro.extend(piece, negatives, self._regions)
            false_positives[piece.at], overlap[piece.at] = piece.fp_beyond, piece.overlap_beyond
        pro.close()
        official = official_area(false_positives / negatives, overlap / self._regions)
        undefined = {} if official is not None else {"official": f"fewer than two FPRs below {FPR_LIMIT}"}
        return PixelResult(
            sums.metrics(), {"official": official, "standard": pro.area / FPR_LIMIT}, pro.points(), undefined
        )

    def _pieces(self, thresholds: NDArray[np.uint32]) -> "Iterator[Piece]":
        """From the highest half key down, those that hold anomalous pixels or thresholds (keys, ascending)."""
        tp, overlap = 0, 0.0
        upper = thresholds >> 16
        wanted = self._anomalous.totals > 0
        wanted[upper] = True
        normal_above = self._normal.totals.sum() - np.cumsum(self._normal.totals)  # pixels of all higher halves
        for half in np.flatnonzero(wanted)[::-1].tolist():
            normal, counts, _ = self._normal.counted(half)
            fp_from = normal_above[half] + np.append(np.cumsum(counts[::-1])[::-1], 0)  # from each normal score on
            scores, counts, weights = self._anomalous.counted(half)
            scores = scores[::-1]  # T, highest first
            tp_at_least = tp + np.cumsum(counts[::-1])
            overlap_at_least = overlap + np.append(0, np.cumsum(weights[::-1]))  # T + 1
            first, last = np.searchsorted(upper, [half, half + 1])
            lower = (thresholds[first:last] & (HALVES - 1)).astype(np.uint16)
            yield Piece(
                tp, tp_at_least, fp_from[np.searchsorted(normal, scores)],
                fp_from[np.searchsorted(normal, scores, side="right")], overlap_at_least, slice(first, last),
                fp_from[np.searchsorted(normal, lower, side="right")],
                overlap_at_least[len(scores) - np.searchsorted(scores[::-1], lower, side="right")],
            )  # fmt: skip
            tp, overlap = int(tp_at_least[-1]) if len(scores) else tp, float(overlap_at_least[-1])


class Piece(NamedTuple):
    """Cumulative counts at the T distinct anomalous scores of one upper half, highest first, and beyond K thresholds."""

    tp_before: int  # of all higher pieces
    tp: NDArray[np.int64]  # (T,) anomalous pixels >= the score
    fp: NDArray[np.int64]  # (T,) normal pixels >= the score
    fp_above: NDArray[np.int64]  # (T,) normal pixels > the score
    overlap: NDArray[np.float64]  # (T + 1,) summed over the regions: of all higher pieces, then at each score
    at: slice  # which thresholds lie in this half, K of them
    fp_beyond: NDArray[np.int64]  # (K,) normal pixels > the threshold
    overlap_beyond: NDArray[np.float64]  # (K,)


class Run(NamedTuple):
    """Where a run starts in the file, how many keys it has, and its lowest and highest upper half."""

    offset: int
    size: int
    first: int
    last: int


class HalfKeys:
    """The lower halves of keys (and a weight each), in a temporary file, grouped by their upper halves.

    The file is a sequence of runs: an index (where each upper half starts), the lower halves, the weights.
    """

    def __init__(self, weighted: bool = False) -> None:
        self.totals = np.zeros(HALVES, np.int64)  # how many flushed keys have each upper half
        self._file = tempfile.TemporaryFile(prefix="anomalyclip-")  # noqa: SIM115 - closed by `close`
        self._descriptor = self._file.fileno()
        self._runs: list[Run] = []
        self._keys = np.empty(RUN, np.uint32)
        self._weights = np.empty(RUN, np.float64) if weighted else None
        self._waiting = 0

    def close(self) -> None:
        self._file.close()

    def append(self, keys: NDArray[np.uint32], weights: NDArray[np.float64] | None = None) -> None:
        """Keys (n,) and, where there are weights, theirs (n,)."""
        while len(keys):
            start, free = self._waiting, len(self._keys) - self._waiting
            taken = min(free, len(keys))
            self._keys[start : start + taken] = keys[:taken]
            if self._weights is not None and weights is not None:
                self._weights[start : start + taken], weights = weights[:taken], weights[taken:]
            keys = keys[taken:]
            self._waiting += taken
            if self._waiting == len(self._keys):
                self.flush()

    def flush(self) -> None:
        """Write what waits as a run of its own."""
        if not self._waiting:
            return
        keys = self._keys[: self._waiting]
        upper = (keys >> 16).astype(np.uint16)
        order = np.argsort(upper, kind="stable")  # a radix sort, for 16 bits
        upper = upper[order]
        first, last = int(upper[0]), int(upper[-1])
        index = np.searchsorted(upper, np.arange(first, last + 2))
        self.totals[first : last + 1] += np.diff(index)
        self._runs.append(Run(self._file.seek(0, 2), len(keys), first, last))
        self._file.write(index.astype(np.uint32).data)
        self._file.write(keys.astype(np.uint16)[order].data)
        if self._weights is not None:
            self._file.write(self._weights[: len(keys)][order].data)
        self._file.flush()
        self._waiting = 0

    def counted(self, half: int) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.float64]]:
        """The distinct lower halves (n,) of an upper half, ascending, how many keys have each, and their weights' sum.

        That is their number again where keys have no weights.
        """
        if self.totals[half] <= min(FEW, RUN):  # one batch at most
            lower, weights = next(self._batches(half), (np.empty(0, np.uint16), None))
            scores, inverse, counts = np.unique(lower, return_inverse=True, return_counts=True)
            return scores, counts, np.bincount(inverse, weights, minlength=len(scores)).astype(np.float64)
        table, sums = np.zeros(HALVES, np.int64), np.zeros(HALVES)
        for lower, weights in self._batches(half):
            table += np.bincount(lower, minlength=HALVES)
            sums += np.bincount(lower, weights, minlength=HALVES)
        found = np.flatnonzero(table)
        return found.astype(np.uint16), table[found], sums[found]

    def _batches(self, half: int) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.float64] | None]]:
        """The lower halves below an upper half, with their weights, about a run's length at a time."""
        lower, weights, size = [], [], 0
        for run in self._runs:
            if run.first <= half <= run.last:
                start, stop = self._read(run.offset + 4 * (half - run.first), 2, np.uint32).tolist()
                data = run.offset + 4 * (run.last - run.first + 2)
                lower.append(self._read(data + 2 * start, stop - start, np.uint16))
                if self._weights is not None:
                    weights.append(self._read(data + 2 * run.size + 8 * start, stop - start, np.float64))
                size += stop - start
            if lower and (size >= RUN or run is self._runs[-1]):
                yield np.concatenate(lower), np.concatenate(weights) if weights else None
                lower, weights, size = [], [], 0

    def _read(self, offset: int, count: int, dtype: Any) -> NDArray[Any]:
        return np.frombuffer(os.pread(self._descriptor, count * np.dtype(dtype).itemsize, offset), dtype)


@dataclass
class RankSums:
    """AUROC, average precision and F1-max, summed piece by piece."""

    positives: int
    negatives: int
    outranked_twice: float = 0.0
    precision: float = 0.0
    f1_max: float = 0.0

    def add(self, piece: Piece) -> None:
        if not len(piece.tp):
            return
        gained = np.diff(piece.tp, prepend=piece.tp_before).astype(np.float64)
        self.outranked_twice += float(gained @ (2 * self.negatives - piece.fp - piece.fp_above))  # ties count half
        self.precision += float(gained @ (piece.tp / (piece.tp + piece.fp)))
        self.f1_max = max(self.f1_max, float(np.max(2 * piece.tp / (piece.tp + piece.fp + self.positives))))

    def metrics(self) -> Metrics:
        auroc = self.outranked_twice / (2 * self.positives * self.negatives)
        return {"auroc": auroc, "ap": self.precision / self.positives, "f1_max": self.f1_max}


class PROArea:
    """The area under a PRO curve up to the limit, and some of its points, from pieces of it in the order of their FPR."""

    def __init__(self) -> None:
        self.area = 0.0
        self._last = (0.0, 0.0)
        self._kept: list[NDArray[np.float64]] = [np.zeros((2, 1))]

    def extend(self, piece: Piece, negatives: int, regions: int) -> None:
        if len(piece.fp):
            fpr = np.stack([piece.fp_above, piece.fp], axis=1).ravel() / negatives  # 2T
            self._extend(fpr, np.stack([piece.overlap[:-1], piece.overlap[1:]], axis=1).ravel() / regions)

    def close(self) -> None:
        self._extend(np.ones(1), np.ones(1))

    def _extend(self, fpr: NDArray[np.float64], overlap: NDArray[np.float64]) -> None:
        if self._last[0] >= FPR_LIMIT:
            return
        fpr, overlap = up_to_limit(np.append(self._last[0], fpr), np.append(self._last[1], overlap))
        self.area += float(np.trapezoid(overlap, fpr))
        self._last = (float(fpr[-1]), float(overlap[-1]))
        cells = np.floor(CURVE_STEPS * np.stack([fpr, overlap]))
        turned = (cells[:, 1:] != cells[:, :-1]).any(axis=0)
        turned[-1] |= self._last[0] >= FPR_LIMIT
        self._kept.append(np.stack([fpr[1:], overlap[1:]])[:, turned])

    def points(self) -> Curve:
        fpr, overlap = np.concatenate(self._kept, axis=1)
        return fpr, overlap


def up_to_limit(fpr: NDArray[np.float64], overlap: NDArray[np.float64]) -> Curve:
    """The curve up to FPR_LIMIT, where it is interpolated; all of it where it ends before."""
    if fpr[-1] < FPR_LIMIT:
        return fpr, overlap
    inside = fpr <= FPR_LIMIT
    at_limit = np.interp(FPR_LIMIT, fpr, overlap)
    return np.append(fpr[inside], FPR_LIMIT), np.append(overlap[inside], at_limit)


def to_keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Keys that are ordered as the values are; both zeros have one."""
    bits = (values + np.float32(0)).view(np.int32)
    flipped = (bits >> 31) | np.int32(-(2**31))  # all bits of negative values, the sign of the others
    return (bits ^ flipped).view(np.uint32)


def rounded_down(thresholds: NDArray[Any]) -> NDArray[np.float32]:
    """The float32 below or at each threshold: the same float32 values exceed it."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def one_class_reason(positives: int, negatives: int, item: str) -> str:
    """Why there is nothing to tell apart: one class of the items (images, pixels) is missing, or both."""
    if not positives and not negatives:
        return f"no {item}"
    return f"no normal {item}" if positives else f"no anomalous {item}"


def overlap_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """What each anomalous pixel of a mask (H, W), in C order, adds to the sum of overlaps: 1 / the area of its region.

    Also the number of regions; they are 8-connected.
    """
    if not mask.any():
        return np.empty(0), 0
    labels, regions = ndimage.label(mask, structure=np.ones((3, 3)))
    inside = labels[mask]
    return 1 / np.bincount(inside)[inside], regions


def official_thresholds(low: Any, high: Any) -> NDArray[Any]:
    """np.arange over the range of the maps, rounding included: about 200 thresholds, none for constant maps."""
    delta = (high - low) / OFFICIAL_STEPS
    return np.arange(low, high, delta) if 0 < delta < np.inf else np.empty(0, np.asarray(low).dtype)


def official_area(fpr: NDArray[Any], overlap: NDArray[Any]) -> float | None:
    """The published area from FPR and mean overlap (K,) beyond each threshold, ascending; None if nothing to rescale."""
    fpr, overlap = fpr[fpr < FPR_LIMIT], overlap[fpr < FPR_LIMIT]
    if len(np.unique(fpr)) < 2:
        return None
    rescaled = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return float(np.trapezoid(overlap[::-1], rescaled[::-1]))  # FPR falls as thresholds rise
