"""How fast the pixel metrics are beside the published way, and how much memory they take.

    python -m benchmarks.metrics [--maps 400] [--share 0.05 | --full] [--json FILE]

Maps of 518 x 518 from seeded patch grids of 37 x 37, every second image with one to three elliptic defects.

- published way: sklearn's roc_auc_score over the flattened pixels; for AUPRO 200 thresholds, each over all maps and all
  regions of skimage's label and regionprops, labelled again for each. All of it is linear in the number of maps but the
  sorting of the first, which is slightly worse; so a share of the maps is measured and the time multiplied (which favours
  the published way), unless --full is given. Memory is that of the share.
- arrays: models.metrics.pixel_metrics (AUROC, AP and F1-max) and aupro on the same maps in memory, in full.
- stream: models.ranking.PixelRanking from the patch grids, map by map: all of these metrics, upsampling and smoothing
  included, with no more than one map in memory.
- intervals: what their bootstrap (models.pixel_intervals) adds to the stream: the maps once more for the bins, histograms
  and 1,000 resamples.

Every measurement has a process of its own, on one core. Seconds are CPU seconds. Memory is the peak of the process, and what
of it came on top of the imports and arguments. Values of both ways are compared where both had the same maps.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import in_its_own_process, peak_memory_gb
from models.intervals import interval
from models.metrics import aupro, pixel_metrics
from models.pixel_intervals import PixelBootstrap, bins_of
from models.ranking import PixelRanking

SIZE, GRID, SIGMA = 518, 37, 4.0
LIMIT = 0.3
PUBLISHED = "published way"


@dataclass(frozen=True)
class Measurement:
    """seconds: CPU; scaled by `maps` / `measured_maps`. values: of the measured maps."""

    metric: str
    way: str
    maps: int
    measured_maps: int
    seconds: float
    peak_memory_mb: float
    added_memory_mb: float
    values: dict[str, float | None]


def images(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks (S, S) bool and patch grids (g, g) float32."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    for number in range(count):
        mask = np.zeros((SIZE, SIZE), bool)
        for _ in range(rng.integers(1, 4) if number % 2 else 0):
            (cy, cx), (ry, rx) = rng.integers(60, SIZE - 60, 2), rng.integers(15, 50, 2)
            mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        noise = rng.random((GRID, GRID), np.float32) * np.float32(0.3)
        yield mask, noise + np.float32(0.2) * mask[7::14, 7::14]


def smoothed(grid: np.ndarray) -> np.ndarray:
    import torch

    from models.maps import upsample

    return upsample(torch.from_numpy(grid), SIZE, SIGMA).numpy()


def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    masks, maps = np.empty((count, SIZE, SIZE), bool), np.empty((count, SIZE, SIZE), np.float32)
    for number, (mask, grid) in enumerate(images(count)):
        masks[number], maps[number] = mask, smoothed(grid)
    return masks, maps


# --- the published way ------------------------------------------------------------------------------------------------


def published_auroc(masks: np.ndarray, maps: np.ndarray) -> dict[str, float | None]:
    from sklearn.metrics import roc_auc_score

    return {"auroc": float(roc_auc_score(masks.ravel(), maps.ravel()))}


def published_aupro(masks: np.ndarray, maps: np.ndarray) -> dict[str, float | None]:
    """masks float32, as the published data loader has them."""
    from skimage.measure import label, regionprops
    from sklearn.metrics import auc

    low, high = maps.min(), maps.max()
    binary = np.zeros_like(maps, dtype=bool)
    fprs, pros = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        binary[maps <= threshold], binary[maps > threshold] = 0, 1
        overlaps = []
        for binary_map, mask in zip(binary, masks, strict=True):
            for region in regionprops(label(mask)):
                overlaps.append(binary_map[region.coords[:, 0], region.coords[:, 1]].sum() / region.area)
        background = 1 - masks
        fprs.append(np.logical_and(background, binary).sum() / background.sum())
        pros.append(np.mean(overlaps))
    fpr, pro = np.array(fprs), np.array(pros)
    kept = fpr < LIMIT
    fpr = fpr[kept]
    return {"official": float(auc((fpr - fpr.min()) / (fpr.max() - fpr.min()), pro[kept]))}


# --- measuring, in processes of their own -----------------------------------------------------------------------------

Arrays = Callable[[np.ndarray, np.ndarray], dict[str, float | None]]


def measure_arrays(metric: str, way: str, maps: int, measured: int) -> Measurement:
    calls: dict[tuple[str, str], Arrays] = {
        ("pixel AUROC", PUBLISHED): published_auroc,
        ("pixel AUROC", "arrays"): pixel_metrics,
        ("AUPRO", PUBLISHED): published_aupro,
        ("AUPRO", "arrays"): lambda masks, maps: {"official": aupro(masks, maps)},
    }
    masks, scores = arrays(measured)
    given = (masks.astype(np.float32) if way == PUBLISHED else masks), scores
    before, started = peak_memory_gb(), time.process_time()
    values = calls[metric, way](*given)
    seconds = (time.process_time() - started) * maps / measured
    return finish(metric, way, maps, measured, seconds, before, values)


class Images:
    """Those of `images`, and the CPU seconds that went into making them up, which are no part of a measurement."""

    def __init__(self, count: int) -> None:
        smoothed(np.zeros((GRID, GRID), np.float32))  # imports torch
        self._source, self.seconds = images(count), 0.0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            started = time.process_time()
            image = next(self._source, None)
            self.seconds += time.process_time() - started
            if image is None:
                return
            yield image


def measure_stream(maps: int) -> Measurement:
    source = Images(maps)
    before, started = peak_memory_gb(), time.process_time()
    with PixelRanking() as ranking:
        for mask, grid in source:
            ranking.add(mask, smoothed(grid))
        result = ranking.result()
    seconds = time.process_time() - started - source.seconds
    return finish("all of them", "stream", maps, maps, seconds, before, result.pixel | result.aupro)


def measure_intervals(maps: int) -> Measurement:
    """The maps of the second pass are those of the stream, and no part of it. values: ends of the intervals."""
    labels, once, again = np.arange(maps) % 2, Images(maps), Images(maps)
    before, started, making = peak_memory_gb(), time.process_time(), 0.0
    bootstrap = PixelBootstrap(labels, bins_of(labels, (smoothed(grid) for _, grid in once)))
    for mask, grid in again:
        mapping = time.process_time()
        anomaly_map = smoothed(grid)
        making += time.process_time() - mapping
        bootstrap.add(mask, anomaly_map)
    draws = bootstrap.draws()
    seconds = time.process_time() - started - once.seconds - again.seconds - making
    ends = {f"{m}_{end}": interval(draws[m])[i] for m in draws for i, end in enumerate(("low", "high"))}
    return finish("all of them", "intervals", maps, maps, seconds, before, ends)


def finish(
    metric: str, way: str, maps: int, measured: int, seconds: float, before: float, values: dict[str, float | None]
) -> Measurement:
    peak = peak_memory_gb()
    return Measurement(metric, way, maps, measured, seconds, 1000 * peak, 1000 * (peak - before), values)


# --- the table --------------------------------------------------------------------------------------------------------


def benchmark(maps: int, share: float) -> list[Measurement]:
    """The published way, the same on arrays (of its share, to compare, and in full), the stream, and its intervals."""
    part = max(2, round(share * maps))
    rows = []
    for metric in ("pixel AUROC", "AUPRO"):
        published = in_its_own_process(measure_arrays, metric, PUBLISHED, maps, part)
        same_maps = in_its_own_process(measure_arrays, metric, "arrays", part, part)
        for name, value in published.values.items():
            if abs(same_maps.values[name] - value) > 1e-9:
                raise AssertionError(f"{metric}: {same_maps.values[name]} is not the published {value}")
        rows += [published, in_its_own_process(measure_arrays, metric, "arrays", maps, maps)]
    return [*rows, in_its_own_process(measure_stream, maps), in_its_own_process(measure_intervals, maps)]


def table(rows: list[Measurement]) -> str:
    published = {row.metric: row.seconds for row in rows if row.way == PUBLISHED}
    published["all of them"] = sum(published.values())
    lines = ["| metric | way | maps | CPU s | times as fast | peak MB | added MB |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        maps = f"{row.maps}" if row.maps == row.measured_maps else f"{row.maps} (from {row.measured_maps})"
        lines.append(
            f"| {row.metric} | {row.way} | {maps} | {row.seconds:.2f} | {published[row.metric] / row.seconds:.1f} "
            f"| {row.peak_memory_mb:.0f} | {row.added_memory_mb:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=400)
    parser.add_argument("--share", type=float, default=0.05, help="of the maps that the published way gets")
    parser.add_argument("--full", action="store_true", help="give it all of them: minutes, and several GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = benchmark(arguments.maps, 1.0 if arguments.full else arguments.share)
    print(table(rows))
    if arguments.json:
        content: dict[str, Any] = {"size": SIZE, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
