"""Scoring a collection shard by shard, each shard exactly once.

A shard is a slice of an immutable manifest part. When all of it is scored its masks and maps are written, its Parquet part
of scores last, and only where there is none: a part that exists is a shard that is done, whatever died or ran at the same
time. Rows hold no time and no host, so that a shard scored twice gives the same bytes. A part says in its metadata in which
precision it was scored: one model scores one collection in one precision.
"""

import io
import math
import os
import threading
import zlib
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from PIL import Image
from prefect import task
from threadpoolctl import ThreadpoolController

from models import Detector
from models.baselines import Baseline
from models.detector import DetectorConfig
from models.maps import map_at
from models.regions import find_regions
from models.stream import Scored, batch_size_for, score_stream
from tasks.images import UnreadableImage, alone_if_huge
from tasks.layouts.listing import is_hidden
from tasks.layouts.source import NO_SIZE
from tasks.manifest import read_part, stream_manifest
from tasks.pixels import READERS, Load, Pixels, read_ahead
from tasks.progress import advance
from tasks.registry import ModelVersion, open_detector
from tasks.retries import RETRIED
from tasks.shards import (
    ScoredShard,
    Shard,
    check_precision,
    first_precision,
    model_folder,
    part_name,
)
from tasks.store import Store, open_filesystem
from tasks.tables import MAPS, SCORES, read_parquet, to_parquet, to_table
from tasks.thresholds import Calibration, cut_at, decide, find_calibration

WRITERS = 8  # threads that cut and write masks behind it

# Masks are cut with small products, many at a time: NumPy's threads would take ten times their work from the model's cores.
ThreadpoolController().select(prefix="libscipy_openblas").limit(limits=1)


# --- what a shard reads -----------------------------------------------------------------------------------------------


_fetching = threading.Lock()  # what the shards of a process share is fetched once, however many begin together


def read_shard(store: Store, collection: str, shard: Shard) -> list[dict[str, Any]]:
    with _fetching:
        table = part_rows(store, collection, shard.manifest_part)
    return list(table.slice(shard.index * shard.size, shard.size).to_pylist())


@lru_cache(maxsize=2)
def part_rows(store: Store, collection: str, part: str) -> pa.Table:
    """What scoring needs of a manifest part, in one request for all of its shards: a part never changes."""
    return read_part(store, collection, part, ["image_id", "uri", "etag", "size", "class_name"])


# --- one shard --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """Where and how the results of one model over one collection are written."""

    store: Store
    collection: str
    partition: str
    bundle_digest: str
    precision: str
    image_size: int
    sigma: float
    map_threshold: float
    calibration: Calibration | None = None

    def cut_at(self, class_name: str) -> float:
        """Where the map of an image of this class is cut."""
        return cut_at(self.calibration, class_name, self.map_threshold)

    def decide(self, class_name: str, score: float) -> dict[str, Any]:
        return decide(self.calibration, class_name, score)

    def is_committed(self, shard: Shard) -> bool:
        return self.store.exists(*model_folder(self.collection, self.partition), part_name(shard))

    def committed(self, shard: Shard) -> ScoredShard:
        """What a shard came to that another run has scored, or a worker that died before it could say so."""
        folder, columns = model_folder(self.collection, self.partition), ["error_kind", "decision"]
        part = read_parquet(self.store, *folder, part_name(shard), columns=columns)
        return summarise(shard, part.to_pylist())

    def settle_precision(self) -> None:
        """Raises OtherScores where the first shard of all is of another: of runs that begin together one goes on."""
        first = first_precision(self.store.uri, self.collection, self.partition, self.precision)
        check_precision(self.collection, self.partition, first, self.precision)

    def write_maps(self, shard: Shard, data: bytes) -> str:
        return self.store.write(data, *model_folder(self.collection, self.partition, "maps"), part_name(shard))

    def commit_scores(self, shard: Shard, data: bytes) -> None:
        """Unless another run has committed the shard meanwhile: what is done is never written over."""
        self.store.create(data, *model_folder(self.collection, self.partition), part_name(shard))

    def mask_path(self, image_id: str) -> tuple[str, ...]:
        return *model_folder(self.collection, self.partition, "masks"), f"{image_id}.png"

    def write_mask(self, image_id: str, png: bytes) -> None:
        self.store.write(png, *self.mask_path(image_id))


@task(name="score shard", task_run_name="{shard.name}", **RETRIED)
def score_shard(store: str, collection: str, model: ModelVersion, shard: Shard, precision: str) -> ScoredShard:
    """Score one shard with the model that this process keeps loaded, and commit it."""
    target = Store(store)
    with _fetching:
        detector = _load_detector(store, model, precision)
        calibration = find_calibration(target, collection, model, shard.part_number)
    config = detector.config
    output = Output(
        target, collection, model.partition, model.digest, precision, config.image_size, config.sigma,
        map_threshold(config), calibration,
    )  # fmt: skip
    return commit_shard(output, shard, detector)


def map_threshold(config: DetectorConfig) -> float:
    """Where masks are cut while nothing is calibrated: half of the map's scale, which ends at the number of layers."""
    return 0.5 * len(config.feature_layers)


_model = threading.Lock()  # of a process: while one shard has the model, the next one's images are read


@lru_cache(maxsize=1)
def _load_detector(store: str, model: ModelVersion, precision: str) -> Detector | Baseline:
    return open_detector(Store(store), model, precision=precision)


def commit_shard(output: Output, shard: Shard, detector: Detector | Baseline) -> ScoredShard:
    """Score one shard and write its masks, then its maps, then its scores; nothing where another run was first."""
    if output.is_committed(shard):
        return output.committed(shard)
    rows = read_shard(output.store, output.collection, shard)
    scored, maps, masks = [], [], dict[str, bytes]()
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        pending: deque[Future[dict[str, Any]]] = deque()
        with closing(score_rows(detector, rows, readers)) as results:
            for row, result in results:
                pending.append(writers.submit(finish_row, output, row, result, masks))
                if isinstance(result, ScoredImage):
                    maps.append(map_row(row, result.grid))
                while len(pending) > 4 * WRITERS:
                    scored.append(pending.popleft().result())
                advance()
        scored += [future.result() for future in pending]
        check_source(output, scored, readers)
        check_access(scored)
        output.settle_precision()
        if output.is_committed(shard):
            return output.committed(shard)
        for _ in writers.map(output.write_mask, masks, masks.values()):
            pass
    output.write_maps(shard, to_parquet(to_table(maps, MAPS)))
    table = to_table(scored, SCORES.with_metadata({"precision": output.precision}))
    output.commit_scores(shard, to_parquet(table))
    return summarise(shard, scored)


def summarise(shard: Shard, scored: list[dict[str, Any]]) -> ScoredShard:
    return ScoredShard(shard.name, len(scored), count_values(scored, "error_kind"), count_values(scored, "decision"))


def check_source(output: Output, scored: list[dict[str, Any]], readers: ThreadPoolExecutor) -> None:
    """FileNotFoundError where a missing image is there again, or the source of several seems to be out of reach: a row would
    say for ever that its image was missing.

    It seems so where nothing of the shard can be found, what was read a moment ago included, though no ingest has noted that
    it was deleted, no bucket answers for it, and its folder is gone or empty.
    """
    missing = [row for row in scored if row.get("error_kind") == "missing"]
    for row, again in zip(missing, readers.map(is_there, map(itemgetter("uri"), missing)), strict=True):
        if again:
            raise FileNotFoundError(f"{row['uri']} could not be found and is there again: is the source in reach?")
    if len(missing) < 2 or bucket_answers(missing[0]["uri"]) or all(map(is_gone, missing)):
        return
    other = next((row for row in scored if row.get("error_kind") != "missing"), None)
    if other and is_there(other["uri"]):
        return
    ids = pa.array([row["image_id"] for row in [*missing, *([other] if other else [])]])
    current = stream_manifest(output.store, output.collection, ["image_id"])
    if not any(pc.any(pc.is_in(ids, table["image_id"])).as_py() for table in current):
        return
    if other:
        raise FileNotFoundError(f"{other['uri']} was there and is not any more: is the source in reach?")
    raise FileNotFoundError(
        f"none of the {len(scored)} images can be found, {scored[0]['uri']} the first: is their source "
        "in reach? `anomalyclip ingest` notes which were deleted"
    )


def check_access(scored: list[dict[str, Any]]) -> None:
    """PermissionError unless of images that a store refuses others can be read, now as before: else it is the credentials,
    and a row would say for ever that they did not suffice. One file alone on a disk is refused by its own rights.
    """
    refused = [row for row in scored if row.get("error_kind") == "forbidden"]
    if not refused:
        return
    other = next((row for row in scored if row.get("score") is not None), None)
    if other is None:
        first, *more = refused
        if not more and isinstance(open_filesystem(first["uri"])[0], LocalFileSystem):
            return
        raise PermissionError(f"{first['uri']} may not be read, nor anything else: {first['error_detail']}")
    filesystem, path = open_filesystem(other["uri"])
    filesystem.cat_file(path, start=0, end=1)


def is_there(uri: str) -> bool:
    filesystem, path = open_filesystem(uri)
    return bool(filesystem.isfile(path))


def is_gone(row: dict[str, Any]) -> bool:
    """Whether the folder of a missing file is in reach, as others lie in it: then the file is gone, or was but a name.

    A link that led to a file when it was listed tells nothing: what it leads to may be out of reach.
    """
    filesystem, path = open_filesystem(row["uri"])
    if not isinstance(filesystem, LocalFileSystem):
        return False
    if os.path.islink(path) and not row["etag"].endswith(NO_SIZE):
        return False
    try:
        with os.scandir(os.path.dirname(path)) as entries:
            return any(not is_hidden(entry.name) for entry in entries)
    except OSError:
        return False


def bucket_answers(uri: str) -> bool:
    """Whether a store, not a disk, says that it has the bucket: then what it does not have there is gone."""
    filesystem, path = open_filesystem(uri)
    bucket = path.partition("/")[0]
    return not isinstance(filesystem, LocalFileSystem) and bool(bucket) and bool(filesystem.exists(bucket))


def count_values(rows: list[dict[str, Any]], column: str) -> dict[str, int]:
    return dict(sorted(Counter(value for row in rows if (value := row.get(column)) is not None).items()))


@dataclass(frozen=True)
class ScoredImage:
    score: float
    grid: np.ndarray
    height: int
    width: int


def score_rows(
    detector: Detector | Baseline, rows: list[dict[str, Any]], readers: ThreadPoolExecutor, load: Load | None = None
) -> Generator[tuple[dict[str, Any], ScoredImage | UnreadableImage], None, None]:
    """Every row in order with its result. Batches are fixed slices of the rows, whatever is unreadable in them.

    load: from a row to its pixels, load_pixels where nothing is given. A baseline's prompts name the class: it takes
    neighbouring rows of one class at a time. The model is held from the first batch until the iterator ends or is closed.
    """
    if isinstance(detector, Baseline):
        for class_name, same in groupby(rows, itemgetter("class_name")):
            yield from score_rows(detector.for_class(class_name), list(same), readers, load)
        return
    size, side = batch_size_for(detector), detector.config.image_size
    slices = [rows[i : i + size] for i in range(0, len(rows), size)]
    loaded: deque[list[Pixels | UnreadableImage]] = deque()

    def batches(turn: ExitStack) -> Iterator[np.ndarray]:
        for number, batch in enumerate(read_ahead(readers, slices, side, load)):
            if number == 0:
                turn.enter_context(_model)
            loaded.append(batch)
            squares = [image.square for image in batch if isinstance(image, Pixels)]
            yield np.stack(squares) if squares else np.empty((0, side, side, 3), np.uint8)

    with ExitStack() as turn:
        for batch_rows, scored in zip(slices, score_stream(detector, batches(turn)), strict=True):
            yield from pair_results(batch_rows, loaded.popleft(), scored)


def pair_results(
    rows: list[dict[str, Any]], images: list[Pixels | UnreadableImage], scored: Scored
) -> Iterator[tuple[dict[str, Any], ScoredImage | UnreadableImage]]:
    position = 0
    for row, image in zip(rows, images, strict=True):
        if isinstance(image, UnreadableImage):
            yield row, image
        else:
            score, grid = float(scored.scores[position]), scored.grids[position]
            if not (math.isfinite(score) and np.isfinite(grid).all()):
                named = row.get("uri", "an image")
                raise RuntimeError(f"the model's answer to {named} is no number: its device or weights are at fault")
            yield row, ScoredImage(score, grid, image.height, image.width)
            position += 1


# --- rows -------------------------------------------------------------------------------------------------------------


_cutting = threading.Lock()


def finish_row(
    output: Output, row: dict[str, Any], result: ScoredImage | UnreadableImage, masks: dict[str, bytes]
) -> dict[str, Any]:
    """The row of the scores table; where anything exceeds the threshold its mask, as PNG, comes to the masks."""
    base = {name: row[name] for name in ("image_id", "uri", "etag", "class_name")} | {
        "bundle_digest": output.bundle_digest
    }
    if isinstance(result, UnreadableImage):
        return base | {"error_kind": result.kind, "error_detail": result.detail}
    png, regions = cut_mask(result, output.image_size, output.sigma, output.cut_at(row["class_name"]))
    mask_uri = None
    if png:
        masks[row["image_id"]] = png
        mask_uri = output.store.uri_of(*output.mask_path(row["image_id"]))
    decided = output.decide(row["class_name"], result.score)
    return base | {"score": result.score, "mask_uri": mask_uri, "regions": regions} | decided


def cut_mask(
    result: ScoredImage, image_size: int, sigma: float, threshold: float
) -> tuple[bytes | None, list[dict[str, Any]]]:
    """The mask of the original image's size as PNG (0 or 255), None where nothing exceeds the threshold; its regions."""
    if not (result.grid > threshold).any():  # nor does the map, whose values are averages of the grid's
        return None, []
    with alone_if_huge(result.height * result.width, _cutting):
        anomaly_map = map_at(result.grid, result.height, result.width, image_size, sigma)
        mask = anomaly_map > threshold
        regions = [region._asdict() for region in find_regions(mask, anomaly_map)]
        return (mask_png(mask) if regions else None), regions


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def map_row(row: dict[str, Any], grid: np.ndarray) -> dict[str, Any]:
    values = np.ascontiguousarray(grid, dtype="<f4")
    return {"image_id": row["image_id"], "rows": grid.shape[0], "cols": grid.shape[1], "values": values.tobytes()}
