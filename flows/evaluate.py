"""Evaluate: metrics of a scored, labelled collection against its labels and masks, into MLflow."""

from dataclasses import dataclass

from prefect import flow

from flows.parameters import BaselineBackbone, BaselineName, CollectionName, Model, StoreUri
from flows.score import score
from tasks.artifacts import publish_links, publish_table
from tasks.baselines import make_baseline
from tasks.errors import InputError
from tasks.evaluation import AUPRO_DEFINITION, ClassMetrics, evaluate_collection, flat, labelled_rows
from tasks.manifest import read_manifest
from tasks.registry import CHAMPION_URI, mlflow_links, resolve_model
from tasks.store import Store, default_store


@dataclass(frozen=True)
class EvaluateSummary:
    """metrics: a row a class, the mean over classes last; unscored: labelled images that could not be read."""

    collection: str
    model: str
    mlflow_run: str
    aupro_definition: str
    unscored: int
    metrics: list[ClassMetrics]


@flow(name="evaluate", flow_run_name="evaluate {collection}")
def evaluate(
    collection: CollectionName,
    model: Model = CHAMPION_URI,
    baseline: BaselineName = None,
    backbone: BaselineBackbone = None,
    store: StoreUri = None,
) -> EvaluateSummary:
    """Compare the scores and maps of a model with the collection's labels and masks, and log the result to MLflow."""
    store = store or default_store()
    if backbone and not baseline:
        raise InputError("a backbone can be chosen for a baseline only: a model has its own")
    if baseline:
        labelled_rows(read_manifest(Store(store), collection, labelled=True))  # nothing is scored in vain
        version = make_baseline(Store(store), baseline, backbone)
        score(collection, version.uri, store=store)
    else:
        version = resolve_model(Store(store), model)
    table, run_id = evaluate_collection(store, collection, version)
    publish_table("evaluate", collection, [flat(row) for row in table], f"{collection}, {version.uri}")
    publish_links("evaluate", collection, mlflow_links(Store(store), version, run_id))
    return EvaluateSummary(collection, version.uri, run_id, AUPRO_DEFINITION, table[-1].unscored, table)
