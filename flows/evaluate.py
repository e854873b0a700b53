"""Evaluate: metrics of a scored, labelled collection against its labels and masks, into MLflow."""

from dataclasses import dataclass
from typing import Literal

from prefect import flow

from flows.score import score
from tasks.baselines import make_baseline
from tasks.errors import InputError
from tasks.evaluation import AUPRO_DEFINITION, ClassMetrics, evaluate_collection, labelled_rows
from tasks.manifest import read_manifest
from tasks.registry import CHAMPION_URI, resolve_model
from tasks.store import Store, default_store

BaselineName = Literal["clip", "clip-ac", "winclip"]


@dataclass(frozen=True)
class EvaluateSummary:
    """A row a class, the mean over classes last."""

    collection: str
    model: str
    mlflow_run: str
    aupro_definition: str
    metrics: list[ClassMetrics]


@flow(name="evaluate", flow_run_name="evaluate {collection}")
def evaluate(
    collection: str,
    model: str = CHAMPION_URI,
    baseline: BaselineName | None = None,
    backbone: str | None = None,
    store: str | None = None,
) -> EvaluateSummary:
    """Compare the scores and maps of a model with the collection's labels and masks, and log the result to MLflow.

    baseline: evaluated instead of the model, after scoring what it has not scored yet; backbone: its own, by default the
    champion's or, where there is none, the embedded one.
    """
    store = store or default_store()
    if backbone and not baseline:
        raise InputError("a backbone can be chosen for a baseline only: a model has its own")
    if baseline:
        labelled_rows(read_manifest(Store(store), collection))  # nothing is scored in vain
        version = make_baseline(Store(store), baseline, backbone)
        score(collection, version.uri, store=store)
    else:
        version = resolve_model(Store(store), model)
    table, run_id = evaluate_collection(store, collection, version)
    return EvaluateSummary(collection, version.uri, run_id, AUPRO_DEFINITION, table)
