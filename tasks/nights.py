"""Nights: what a nightly run came to, told once.

The images of a night are those that no complete night of the same model has told of, by the number of manifest parts: what
was scored by a night that was killed, or by hand, is told by the next one. The last complete night of each model lies at
`collections/<collection>/nights/model=<name>.v<version>.json`.
"""

import json
from dataclasses import asdict, dataclass

import mlflow
import pandas as pd
from prefect import task
from prefect.events import emit_event

from models.drift import Drift, find_drift
from tasks.manifest import digest_of
from tasks.progress import watched
from tasks.registry import ModelVersion, tracked_run
from tasks.retries import RETRIED
from tasks.runs import write_run_record
from tasks.scored import read_outline
from tasks.store import Store
from tasks.thresholds import find_calibration

COMPLETED, WITH_UNREADABLE, FAILED = "Completed", "Completed with unreadable images", "Failed"
DRIFT_EVENT = "anomalyclip.scores.moved"


@dataclass(frozen=True)
class ClassNight:
    """Counts of the images of a class in a night; drift: None where there is no reference, or too few images."""

    class_name: str
    images: int
    scored: int
    anomalous: int
    unreadable: int
    drift: Drift | None


@dataclass(frozen=True)
class NightSummary:
    """What a night came to; message tells it in one sentence, state is the one that its run ends in.

    undecided: scored while nothing was calibrated; unreadable: by kind; moved: classes whose scores have drifted;
    failed: why images are missing, None where none are.
    """

    run_id: str
    collection: str
    source: str
    model: str
    state: str
    message: str
    images: int
    scored: int
    anomalous: int
    undecided: int
    unreadable: dict[str, int]
    moved: list[str]
    failed: str | None
    classes: list[ClassNight]
    seconds: float
    manifest_digest: str
    manifest_parts: int
    report: str
    mlflow_run: str


@dataclass(frozen=True)
class Night:
    """The images of a night (outline of tasks.scored, manifest parts from first_part on) and the drift of their classes."""

    rows: pd.DataFrame
    drift: dict[str, Drift]
    failed: str | None = None
    first_part: int = 0

    @property
    def anomalous(self) -> int:
        return int((self.rows["decision"] == "anomalous").sum())

    @property
    def scored(self) -> int:
        return int(self.rows["score"].notna().sum())

    @property
    def undecided(self) -> int:
        return int((self.rows["score"].notna() & self.rows["decision"].isna()).sum())

    @property
    def unreadable(self) -> dict[str, int]:
        return {str(kind): int(count) for kind, count in self.rows["error_kind"].value_counts().sort_index().items()}

    @property
    def moved(self) -> list[str]:
        return [name for name, found in self.drift.items() if found.moved]

    @property
    def state(self) -> str:
        return FAILED if self.failed else WITH_UNREADABLE if self.unreadable else COMPLETED

    @property
    def classes(self) -> list[ClassNight]:
        classes = []
        for name, rows in self.rows.groupby("class_name"):
            night = Night(rows, {})
            unreadable, drift = sum(night.unreadable.values()), self.drift.get(str(name))
            classes.append(ClassNight(str(name), len(rows), night.scored, night.anomalous, unreadable, drift))
        return classes

    @property
    def notice(self) -> str:
        """What the report says above everything."""
        moved = (f"The scores of {name} have moved against the reference of their thresholds (distance "
                 f"{self.drift[name].distance:.2f}): decisions may be wrong. Look for what changed, then calibrate again, "
                 "on the nights since then (`anomalyclip calibrate --nights`)."
                 for name in self.moved)  # fmt: skip
        return " ".join([*moved, self.failed or ""]).strip()

    @property
    def message(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.unreadable.items())
        parts = [
            f"{len(self.rows)} images" if len(self.rows) else "no new images",
            f"{self.anomalous} anomalous" if self.scored > self.undecided else "",
            f"{self.undecided} without a decision: run `anomalyclip calibrate`" if self.undecided else "",
            f"{sum(self.unreadable.values())} unreadable ({kinds})" if kinds else "",
            f"the scores of {', '.join(self.moved)} have moved" if self.moved else "",
            self.failed or "",
        ]
        return "; ".join(part for part in parts if part)


@task(name="read night", **RETRIED)
def read_night(store: str, collection: str, model: ModelVersion, failed: str | None, parts: tuple[str, ...]) -> Night:
    """All of these first parts of the manifest that this model has scored and no complete night has told of; what came while
    it ran is for the next."""
    target = Store(store)
    told = parts_told(target, collection, model, parts)
    rows = read_outline(target, collection, model, told, len(parts))
    return Night(rows, compare_with_reference(target, collection, model, rows), failed, told)


def parts_told(store: Store, collection: str, model: ModelVersion, parts: tuple[str, ...]) -> int:
    """How many of the parts the last complete night has told of; 0 where it told of another manifest, since lost."""
    path = night_path(collection, model)
    if not store.exists(*path):
        return 0
    record = json.loads(store.read(*path))
    told = int(record["manifest_parts"])
    return told if digest_of(parts[:told]) == record["manifest_digest"] else 0


def night_path(collection: str, model: ModelVersion) -> tuple[str, ...]:
    return "collections", collection, "nights", f"model={model.partition}.json"


def compare_with_reference(store: Store, collection: str, model: ModelVersion, rows: pd.DataFrame) -> dict[str, Drift]:
    """Drift by class against the scores that the newest thresholds come from.

    Images of manifest parts before that calibration may be in its reference and are left out.
    """
    calibration = find_calibration(store, collection, model, int(rows["part"].max())) if len(rows) else None
    if calibration is None:
        return {}
    later = rows[rows["score"].notna() & (rows["part"] >= calibration.thresholds.manifest_parts)]
    return find_drift(calibration.scores, {str(name): g["score"].to_numpy() for name, g in later.groupby("class_name")})


def announce_drift(summary: NightSummary) -> None:
    """A Prefect event that automations can react to."""
    if summary.moved and watched():
        moved = {row.class_name: asdict(row.drift) for row in summary.classes if row.drift and row.drift.moved}
        emit_event(
            DRIFT_EVENT, payload={"run_id": summary.run_id, "model": summary.model, "classes": moved},
            resource={"prefect.resource.id": f"anomalyclip.collection.{summary.collection}",
                      "prefect.resource.name": summary.collection},
        )  # fmt: skip


@task(name="log night", **RETRIED)
def log_night(store: str, collection: str, model: ModelVersion, run_id: str, night: Night) -> str:
    """The night as an MLflow run, so that nights can be compared there; returns its id."""
    params = {"collection": collection, "model": model.uri, "bundle_digest": model.digest, "run_id": run_id}
    with tracked_run(Store(store), f"nightly {collection}", params) as mlflow_run:
        mlflow.log_metrics(
            {"images": len(night.rows), "scored": night.scored, "anomalous": night.anomalous,
             "undecided": night.undecided, "unreadable": sum(night.unreadable.values()),
             "largest_drift": max((found.distance for found in night.drift.values()), default=0.0)}
        )  # fmt: skip
        return mlflow_run


@task(name="record night", **RETRIED)
def record_night(store: str, model: ModelVersion, summary: NightSummary) -> None:
    """Write the run record; of a night in which nothing failed, the next one does not tell again."""
    target = Store(store)
    write_run_record(target, summary.collection, "nightly", summary)
    if summary.failed is None:
        told = json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n"
        target.write(told.encode(), *night_path(summary.collection, model))
