"""Thresholds: where they lie, which of them counts for a shard, and the decisions that follow.

A calibration counts for the manifest parts that are written after it, never for those before. So the rows of a shard
follow from its manifest part, the bundle and the calibrations before that part: a run that was killed, and finished after
another calibration, still ends with the same bytes. Where the store has none, the bundle's own threshold.json counts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import conformal_p_values
from tasks.errors import InputError
from tasks.registry import ModelVersion, bundle_folder
from tasks.shards import model_folder
from tasks.store import Store
from tasks.tables import read_parquet

THRESHOLD_FILE = "threshold.json"


@dataclass(frozen=True)
class ClassThreshold:
    """Of one class: images of the reference, threshold of the score and of the map (0 to the number of feature layers)."""

    images: int
    score: float
    pixel: float


@dataclass(frozen=True)
class Thresholds:
    """What threshold.json holds: thresholds by class and where they come from.

    manifest_digest: the snapshot of the collection that was the reference, of its parts from first_part on, with which the
    last `nights` began (None: of all nights). manifest_parts: those that there were when the calibration ended; it counts
    for the parts after them.
    """

    collection: str
    model: str
    bundle_digest: str
    manifest_digest: str
    manifest_parts: int
    false_alarm_rate: float
    classes: dict[str, ClassThreshold]
    reference: str | None = None  # the file beside it with the reference's scores
    nights: int | None = None
    first_part: int = 0


@dataclass(frozen=True)
class Calibration:
    """Thresholds with the reference's scores by class, where these are kept (a bundle has none)."""

    thresholds: Thresholds
    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def pixel(self, class_name: str, default: float) -> float:
        """Where the map of an image of this class is cut; the default for a class that is not calibrated."""
        found = self.thresholds.classes.get(class_name)
        return found.pixel if found else default

    def decide(self, class_name: str, score: float) -> dict[str, Any]:
        """The columns decision, threshold and p_value of a row; none for a class that is not calibrated."""
        found = self.thresholds.classes.get(class_name)
        if found is None:
            return {}
        decision = "anomalous" if score > found.score else "normal"
        reference = self.scores.get(class_name)
        p_value = None if reference is None else float(conformal_p_values(reference, [score])[0])
        return {"decision": decision, "threshold": found.score, "p_value": p_value}


def cut_at(calibration: Calibration | None, class_name: str, default: float) -> float:
    """Calibration.pixel; the default where nothing is calibrated."""
    return calibration.pixel(class_name, default) if calibration else default


def decide(calibration: Calibration | None, class_name: str, score: float) -> dict[str, Any]:
    """Calibration.decide; no columns where nothing is calibrated."""
    return calibration.decide(class_name, score) if calibration else {}


def thresholds_folder(collection: str, partition: str) -> tuple[str, ...]:
    return model_folder(collection, partition, "thresholds")


def calibration_name(manifest_parts: int) -> str:
    """The folder of the calibration that counts from this number of manifest parts on."""
    return f"from-{manifest_parts:05d}"


def write_thresholds(store: Store, collection: str, partition: str, thresholds: Thresholds) -> str:
    data = (json.dumps(asdict(thresholds), indent=2, ensure_ascii=False) + "\n").encode()
    folder = thresholds_folder(collection, partition)
    return store.write(data, *folder, calibration_name(thresholds.manifest_parts), THRESHOLD_FILE)


def parse_thresholds(data: bytes, where: str) -> Thresholds:
    """Raises InputError where it is none of ours."""
    try:
        content = json.loads(data)
        classes = {name: ClassThreshold(**values) for name, values in content["classes"].items()}
        if not all(math.isfinite(value) for found in classes.values() for value in (found.score, found.pixel)):
            raise ValueError("a threshold is a finite number")
        return Thresholds(**content | {"classes": classes})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} holds no thresholds: {error}; run `anomalyclip calibrate` again") from error


@lru_cache(maxsize=8)
def find_calibration(store: Store, collection: str, model: ModelVersion, manifest_part: int) -> Calibration | None:
    """What counts for the images of a manifest part, by its number; None while nothing is calibrated.

    It never changes: `calibrate` sets what counts for the parts to come.
    """
    folder = thresholds_folder(collection, model.partition)
    names = [path.partition("/")[0] for path in store.find(*folder, suffix=THRESHOLD_FILE)]
    before = [name for name in names if name <= calibration_name(manifest_part)]
    return read_calibration(store, *folder, max(before)) if before else bundle_calibration(store, model)


def read_calibration(store: Store, *folder: str, name: str = THRESHOLD_FILE) -> Calibration:
    thresholds = parse_thresholds(store.read(*folder, name), store.uri_of(*folder, name))
    if thresholds.reference is None:
        return Calibration(thresholds)
    reference = read_parquet(store, *folder, thresholds.reference).to_pandas()
    scores = {str(name): np.sort(rows["score"].to_numpy(float)) for name, rows in reference.groupby("class_name")}
    return Calibration(thresholds, scores)


@lru_cache(maxsize=8)
def bundle_calibration(store: Store, model: ModelVersion) -> Calibration | None:
    """The bundle's own threshold.json; its digest is that of the bundle, so it never changes."""
    with bundle_folder(store, model) as bundle:
        path = bundle / THRESHOLD_FILE
        return Calibration(parse_thresholds(path.read_bytes(), str(path))) if path.is_file() else None
