"""Calibration of a collection's scores against themselves.

The reference is what a model has scored of the collection's current images so far, or of those that the last nights
brought, unlabelled; images that are known to be anomalous are left out. models.conformal says what is guaranteed, and what
unknown anomalies in the reference do.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from prefect import task

from models.conformal import conformal_threshold, smallest_reference
from models.detector import DetectorConfig
from models.maps import upsample
from tasks.errors import InputError
from tasks.grids import stored_grids
from tasks.manifest import FACTS_PART, digest_of, existing_parts, stream_manifest
from tasks.registry import ModelVersion, bundle_config
from tasks.retries import RETRIED
from tasks.scored import read_scores
from tasks.shards import check_bundle, later_parts, model_folder, part_number
from tasks.store import Store
from tasks.tables import MANIFEST, in_blocks, to_parquet
from tasks.thresholds import (
    ClassThreshold,
    Thresholds,
    calibration_name,
    thresholds_folder,
    write_thresholds,
)

REFERENCE = pa.schema(
    [("image_id", pa.string()), ("class_name", pa.string()), ("score", pa.float64()), ("peak", pa.float64())]
)
MAPS_AT_ONCE = 32  # maps in memory at a time: 34 MB at 518 pixels


@dataclass(frozen=True)
class CalibrateSummary:
    """too_small: classes with fewer images than the rate needs, with their numbers; they stay undecided.

    nights: how many the reference is of, None where it is of all.
    """

    collection: str
    model: str
    false_alarm_rate: float
    classes: dict[str, ClassThreshold]
    too_small: dict[str, int]
    manifest_digest: str
    thresholds: str
    nights: int | None = None


@task(name="calibrate", task_run_name="calibrate {collection}", **RETRIED)
def calibrate_collection(
    store: str, collection: str, model: ModelVersion, rate: float, nights: int | None = None
) -> CalibrateSummary:
    """Set thresholds of image and pixel from what this model has scored of the collection; see tasks.thresholds.

    nights: take only images that the last so many nights brought, see first_part_of. Raises InputError where no class has
    enough images for the rate.
    """
    if not 0 < rate < 1:
        raise InputError(f"a false-alarm rate lies between 0 and 1, not at {rate}")
    target = Store(store)
    parts = existing_parts(target, collection)
    first_part = first_part_of(parts, nights)
    config = bundle_config(target, model)
    reference = read_reference(target, collection, model, config, first_part)
    counts = {str(name): int(count) for name, count in reference["class_name"].value_counts().sort_index().items()}
    needed = smallest_reference(rate)
    classes = {
        name: class_threshold(reference[reference["class_name"] == name], rate)
        for name, count in counts.items()
        if count >= needed
    }
    if not classes:
        raise InputError(
            f"a false-alarm rate of {rate} needs {needed} scored images of a class, {collection!r} has "
            f"{', '.join(f'{count} of {name!r}' for name, count in counts.items())}"
            f"{' in the nights that were asked for' if nights else ''}: score more, or state a higher rate"
        )
    known = len(existing_parts(target, collection))  # by now: parts that came meanwhile may be half scored
    thresholds = Thresholds(
        collection, model.uri, model.digest, digest_of(parts), known, rate, classes,
        nights=nights, first_part=first_part,
    )  # fmt: skip
    uri = commit(target, model, thresholds, reference[reference["class_name"].isin(classes)])
    too_small = {name: count for name, count in counts.items() if name not in classes}
    return CalibrateSummary(collection, model.uri, rate, classes, too_small, thresholds.manifest_digest, uri, nights)


def first_part_of(parts: Sequence[str], nights: int | None) -> int:
    """The number of the manifest part with which the last `nights` begin, 0 for all.

    A night is a day (UTC) of which the manifest has new images: one that brought none is not counted.
    """
    if nights is None:
        return 0
    if nights < 1:
        raise InputError(f"a reference is of one night or more, not of {nights}")
    days: dict[str, list[int]] = {}
    for part in parts:
        if not part.endswith(f"{FACTS_PART}.parquet"):
            days.setdefault(part.partition("/")[0], []).append(part_number(part))
    return min(min(days[day]) for day in sorted(days)[-nights:])


def class_threshold(rows: pd.DataFrame, rate: float) -> ClassThreshold:
    """The same rate for both: an image's score, and whether any pixel of its map is in the mask."""
    return ClassThreshold(len(rows), conformal_threshold(rows["score"], rate), conformal_threshold(rows["peak"], rate))


def commit(store: Store, model: ModelVersion, thresholds: Thresholds, reference: pd.DataFrame) -> str:
    """Write the reference's scores, then the thresholds that name them."""
    data = to_parquet(pa.Table.from_pandas(reference, schema=REFERENCE, preserve_index=False).replace_schema_metadata())
    name = f"reference-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
    folder = thresholds_folder(thresholds.collection, model.partition)
    store.write(data, *folder, calibration_name(thresholds.manifest_parts), name)
    named = Thresholds(**{**vars(thresholds), "reference": name})
    return write_thresholds(store, thresholds.collection, model.partition, named)


def read_reference(
    store: Store, collection: str, model: ModelVersion, config: DetectorConfig, first_part: int
) -> pd.DataFrame:
    """image_id, class_name (that of today), score and the highest value of the map, of the scored images of manifest parts
    from first_part on that are current and not known to be anomalous."""
    folder = model_folder(collection, model.partition)
    names = later_parts(store, folder, first_part)
    scores = read_scores(store, folder, names, ["image_id", "score", "bundle_digest"])
    check_bundle(collection, model, scores["bundle_digest"])
    scores = scores.select(["image_id", "score"])
    known = MANIFEST.empty_table().select(["image_id", "class_name"])
    for table in stream_manifest(store, collection, ["image_id", "class_name", "label"]):
        normal = pc.invert(pc.fill_null(pc.equal(table["label"], 1), False))
        scored = table.filter(pc.and_(normal, pc.is_in(table["image_id"], scores["image_id"])))
        known = pa.concat_tables([known, scored.select(known.column_names)])
    usable = pc.and_(pc.is_valid(scores["score"]), pc.is_in(scores["image_id"], known["image_id"]))
    reference = scores.filter(usable).to_pandas().drop_duplicates("image_id").merge(known.to_pandas(), on="image_id")
    if reference.empty:
        raise InputError(
            f"{model.uri} has scored nothing of {collection!r} that can be a reference: "
            f"run `anomalyclip score --collection {collection}` first"
        )
    ids = reference["image_id"]
    reference["peak"] = ids.map(read_peaks(store, collection, model, config, ids, first_part))
    gone = int(reference["peak"].isna().sum())
    if gone:
        raise InputError(
            f"of {gone} images of {collection!r} the store has a score of {model.uri} but no map, without which there is no "
            "threshold for masks: parts of the maps were removed. `--nights N` takes the last nights alone"
        )
    return reference.sort_values("image_id", ignore_index=True)


def read_peaks(
    store: Store, collection: str, model: ModelVersion, config: DetectorConfig, images: Iterable[str], first_part: int
) -> dict[str, float]:
    """The highest value of each of these images' smoothed map at the model's size, which none at another size exceeds."""
    peaks = dict[str, float]()
    for batch in in_blocks(stored_grids(store, collection, model, images, first_part), MAPS_AT_ONCE):
        ids, grids = zip(*batch, strict=True)
        maps = upsample(torch.from_numpy(np.stack(grids)), config.image_size, config.sigma)
        peaks |= zip(ids, maps.amax(dim=(1, 2)).tolist(), strict=True)
    return peaks
