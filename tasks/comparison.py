"""Evaluation runs beside each other, and how sure their differences are.

Two runs can be compared where they evaluated the same labelled images: the resamples of the bootstrap are then paired,
and what makes an image hard for both drops out of the difference. Image metrics are drawn again from the scores that a
run has logged. Pixel metrics are those that `evaluate` has drawn and logged, so no map is read again; they are paired
class by class, where both runs had the same images with a truth.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.intervals import bootstrap_image_metrics, interval
from models.metrics import image_metrics
from tasks.errors import InputError
from tasks.evaluation import METRICS, PIXEL_DRAWS, PIXEL_METRICS, metric_name
from tasks.registry import EXPERIMENT, tracking_name, use_tracking
from tasks.store import Store

FINISHED = "tags.step = 'evaluate' and attributes.status = 'FINISHED'"
MEAN = "mean"  # over classes, as the last row of an evaluation is called


@dataclass(frozen=True)
class Evaluation:
    """An evaluation run; rows: image_id, class_name, label and score of its images, in the order of their ids.

    pixel_draws: as tasks.evaluation.save_pixel_draws has written them; None for a run without them.
    """

    run_id: str
    model: str
    collection: str
    aupro_definition: str
    metrics: Mapping[str, float]
    rows: pd.DataFrame
    pixel_draws: pd.DataFrame | None


@dataclass(frozen=True)
class ComparedMetrics:
    """What one run found of one class; None where undefined."""

    class_name: str
    run_id: str
    model: str
    images: int
    image_auroc: float | None
    image_ap: float | None
    image_f1_max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1_max: float | None
    aupro: float | None
    aupro_standard: float | None


@dataclass(frozen=True)
class Difference:
    """A metric of a run minus that of the first run, and the paired bootstrap interval of it, 95 %."""

    class_name: str
    run_id: str
    metric: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class CompareSummary:
    """Both tables by class, the mean over classes last where there is more than one."""

    collection: str
    images: int
    aupro_definition: str
    metrics: list[ComparedMetrics]
    differences: list[Difference]


@task(name="compare", cache_policy=NO_CACHE)
def compare_runs(store: str, runs: list[str]) -> CompareSummary:
    """Metrics of evaluation runs, named by their ids or the beginnings of them, and differences to the first of them.

    Raises InputError where the runs did not evaluate the same images.
    """
    client = use_tracking(Store(store))
    first, *others = evaluations = [read_evaluation(find_run(client, run)) for run in runs]
    for other in others:
        check_same_images(first, other)
    return CompareSummary(
        first.collection, len(first.rows), first.aupro_definition, compared_metrics(evaluations),
        [difference for other in others for difference in differences(first, other)],
    )  # fmt: skip


def compared_metrics(evaluations: list[Evaluation]) -> list[ComparedMetrics]:
    """A row a class and run, as the runs have logged them."""
    counts = evaluations[0].rows.groupby("class_name", sort=True).size()
    classes = [(str(name), int(count), f"/{metric_name(str(name))}") for name, count in counts.items()]
    if len(classes) > 1:
        classes.append((MEAN, int(counts.sum()), ""))
    return [
        ComparedMetrics(name, e.run_id, e.model, images, **{m: e.metrics.get(f"{m}{suffix}") for m in METRICS})
        for name, images, suffix in classes
        for e in evaluations
    ]


def differences(first: Evaluation, other: Evaluation) -> list[Difference]:
    """Of each metric that both runs have, by class and last of the mean over these classes.

    Classes of one label alone have no image metrics, those without masks no pixel metrics.
    """
    before, after = draws_by_class(first), draws_by_class(other)
    moved = [(key, after[key] - before[key]) for key in before if key in after]
    if len({key.class_name for key, _ in moved}) > 1:
        for metric in METRICS:
            of_classes = [draws for key, draws in moved if key.metric == metric]
            moved += [(Drawn(MEAN, metric, ""), np.mean(of_classes, axis=0))] if of_classes else []
    return [
        Difference(key.class_name, other.run_id, key.metric, float(draws[0]), *interval(draws[1:]))
        for key, draws in moved
    ]


class Drawn(NamedTuple):
    """What was drawn; two of them are paired where they are equal. images: a digest, empty for all images of the class."""

    class_name: str
    metric: str
    images: str


def draws_by_class(evaluation: Evaluation) -> dict[Drawn, np.ndarray]:
    """Metrics (1 + resamples,), class by class: first what was measured, then what the bootstrap drew.

    The draws depend on the images' labels and order alone, so that those of two models are paired; those of two classes
    are independent.
    """
    draws = dict[Drawn, np.ndarray]()
    for number, (name, members) in enumerate(evaluation.rows.groupby("class_name", sort=True)):
        labels, scores = members["label"].to_numpy(int), members["score"].to_numpy(float)
        measured, resampled = image_metrics(labels, scores), bootstrap_image_metrics(labels, scores, seed=[0, number])
        for metric, drawn in (resampled or {}).items():
            draws[Drawn(str(name), f"image_{metric}", "")] = np.array([measured[metric], *drawn])
        draws |= pixel_draws(evaluation, str(name))
    return draws


def pixel_draws(evaluation: Evaluation, class_name: str) -> dict[Drawn, np.ndarray]:
    found = evaluation.pixel_draws
    if found is None:
        return {}
    found = found[found["class_name"] == class_name]
    metrics = [metric for metric in PIXEL_METRICS if metric in found and found[metric].iloc[1:].notna().any()]
    return {Drawn(class_name, metric, found["images"].iloc[0]): found[metric].to_numpy() for metric in metrics}


def unpaired(first: Evaluation, other: Evaluation, metric: str) -> list[str]:
    """Classes of which one of the runs has this pixel metric and no difference is found: there it is undefined in the other,
    or of other masks. Image metrics of the same images are always paired.
    """
    classes = first.rows["class_name"].unique()
    drawn = [{key for c in classes for key in pixel_draws(e, str(c)) if key.metric == metric} for e in (first, other)]
    return sorted({key.class_name for key in drawn[0] ^ drawn[1]})


def check_same_images(first: Evaluation, other: Evaluation) -> None:
    if first.collection != other.collection:
        raise InputError(
            f"run {first.run_id} evaluated the collection {first.collection!r} and {other.run_id} {other.collection!r}: "
            "only runs on one collection can be compared"
        )
    labelled = ["image_id", "class_name", "label"]
    if not first.rows[labelled].equals(other.rows[labelled]):
        common = len(first.rows[labelled].merge(other.rows[labelled]))
        raise InputError(
            f"runs {first.run_id} and {other.run_id} evaluated different states of {first.collection!r}: {common} of "
            f"their {len(first.rows)} and {len(other.rows)} labelled images are the same; score with both models, and "
            "evaluate again"
        )


# --- MLflow -----------------------------------------------------------------------------------------------------------


def find_run(client: MlflowClient, run: str) -> Run:
    """The finished evaluation run with this id, or with the only id that begins so."""
    found = search(client, f"attributes.run_id LIKE '{run}%'") if run.isalnum() else []
    if not found:
        raise InputError(f"there is no finished evaluation run {run!r} in {tracking_name()}")
    if len(found) > 1:
        raise InputError(f"{len(found)} evaluation runs begin with {run!r}: write more of the id")
    return found[0]


def evaluations_of(client: MlflowClient, model: str, digest: str, collection: str) -> list[Run]:
    """The finished evaluation runs of a model version on a collection, the newest first."""
    return search(
        client,
        f"params.model = '{model}' and params.bundle_digest = '{digest}' and params.collection = '{collection}'",
    )


def search(client: MlflowClient, condition: str) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment, "use_tracking has made it"
    return list(client.search_runs([experiment.experiment_id], f"{FINISHED} and {condition}"))  # newest first


def read_evaluation(run: Run) -> Evaluation:
    params = run.data.params
    rows = read_artifact(run, "scores.parquet")[["image_id", "class_name", "label", "score"]].astype({"label": int})
    kept = {item.path for item in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
    return Evaluation(
        run.info.run_id, params["model"], params["collection"], params["aupro_definition"], run.data.metrics,
        rows.sort_values("image_id", ignore_index=True), read_artifact(run, PIXEL_DRAWS) if PIXEL_DRAWS in kept else None,
    )  # fmt: skip


def read_artifact(run: Run, name: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        return pd.read_parquet(
            mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name, dst_path=folder)
        )
