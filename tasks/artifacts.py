"""Artifacts of a run in Prefect's UI: a table of numbers, the highest-scoring images with their heat maps, links.

Names and labels are hostile: in Markdown every character of theirs that could mean something is written as an entity. The
pictures are small and lie in the artifact itself, so that whoever may look at the run needs no access to the bucket.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import mlflow
import pandas as pd
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from models.detector import read_bundle_config
from tasks.evaluation import read_grids
from tasks.manifest import records
from tasks.nights import Night, NightSummary
from tasks.progress import watched
from tasks.registry import EXPERIMENT, ModelVersion, bundle_folder, use_tracking
from tasks.report import build_card
from tasks.store import Store

HIGHEST = 6  # images that are shown


def publish_table(step: str, collection: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Rows with the same columns."""
    if watched():
        create_table_artifact([dict(row) for row in rows], artifact_key(step, collection), as_text(description))


def publish_night(store: Store, model: ModelVersion, night: Night, summary: NightSummary) -> None:
    if not watched():
        return
    collection = summary.collection
    publish_table("nightly", collection, table_rows(summary), f"{collection}, {summary.model}: {summary.message}")
    shown = highest_images(store, collection, model, night)
    create_markdown_artifact(shown, artifact_key("nightly", collection, "highest"), "The highest scores of the night")
    links = {"report": summary.report} | mlflow_links(store, model, summary.mlflow_run)
    for name, link in links.items():
        create_link_artifact(quote(link, safe=":/#?=&%@"), as_text(link), artifact_key("nightly", collection, name))


def table_rows(summary: NightSummary) -> list[dict[str, Any]]:
    """A row a class and one over all."""
    rows = [
        {"class": row.class_name, "images": row.images, "scored": row.scored, "anomalous": row.anomalous,
         "unreadable": row.unreadable, "moved": "yes" if row.drift and row.drift.moved else "", "seconds": ""}
        for row in summary.classes
    ]  # fmt: skip
    return [
        *rows,
        {"class": f"all of {summary.collection}", "images": summary.images, "scored": summary.scored,
         "anomalous": summary.anomalous, "unreadable": sum(summary.unreadable.values()),
         "moved": "yes" if summary.moved else "", "seconds": summary.seconds},
    ]  # fmt: skip


def highest_images(store: Store, collection: str, model: ModelVersion, night: Night) -> str:
    """A Markdown table of the images with the highest scores; an image that can no longer be read is left out."""
    scored: pd.DataFrame = night.rows[night.rows["score"].notna()]
    highest = scored.sort_values("score", ascending=False, kind="stable").head(HIGHEST)
    with bundle_folder(store, model) as folder:
        config = read_bundle_config(folder)
    grids = read_grids(store, collection, model, highest["image_id"], night.first_part)
    lines = ["| image | abnormal probability | score | decision | class | name |", "|---|---|---|---|---|---|"]
    for row in records(highest):
        if card := build_card(row, grids, config):
            facts = (f"{card.score:.3f}", row["decision"] or "–", as_text(card.class_name), as_text(card.name))
            lines.append(f"| ![image]({card.image}) | ![heat map]({card.heat}) | {' | '.join(facts)} |")
    return "\n".join(lines) if len(lines) > 2 else "No image was scored."


def mlflow_links(store: Store, model: ModelVersion, run_id: str) -> dict[str, str]:
    """Pages of the run and of the model, where MLflow is a server; a database's address is nobody's business."""
    client = use_tracking(store)
    uri = urlsplit(mlflow.get_tracking_uri())
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if uri.scheme not in ("http", "https") or experiment is None:
        return {}
    server = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path.rstrip('/')}/#"
    pages = {"mlflow-run": f"{server}/experiments/{experiment.experiment_id}/runs/{run_id}"}
    if model.uri.startswith("models:/"):
        pages["model"] = f"{server}/models/{quote(model.name)}/versions/{model.version}"
    return pages


def artifact_key(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower())


def as_text(value: str) -> str:
    """Markdown that shows a value as it is, on one line."""
    return re.sub(r"[^\w –;,-]|_", lambda found: f"&#{ord(found[0])};", " ".join(value.split()))
