"""What a night leaves in Prefect's UI: its table, the highest-scoring images with their heat maps, links.

The pictures are small and lie in the artifact itself, so that whoever may look at the run needs no access to the bucket.
"""

from typing import Any

import pandas as pd
from prefect import task

from tasks.artifacts import as_text, publish_links, publish_markdown, publish_table
from tasks.grids import read_grids
from tasks.images import UnreadableImage
from tasks.manifest import records
from tasks.nights import Night, NightSummary
from tasks.pictures import data_uri, image_and_heat
from tasks.progress import watched
from tasks.registry import ModelVersion, bundle_config, mlflow_links
from tasks.retries import RETRIED
from tasks.scored import read_rest
from tasks.store import Store

HIGHEST = 6  # images that are shown
SIDE = 224  # pixels, their longer side


@task(name="publish night", **RETRIED)
def publish_night(store: str, model: ModelVersion, night: Night, summary: NightSummary) -> None:
    if watched():
        target, name = Store(store), summary.collection
        publish_table("nightly", name, table_rows(summary), f"{name}, {summary.model}: {summary.message}")
        shown = highest_images(target, name, model, night)
        publish_markdown("nightly", name, "highest", shown, "The highest scores of the night")
        links = {"report": summary.report} | mlflow_links(target, model, summary.mlflow_run)
        publish_links("nightly", name, links)


def table_rows(summary: NightSummary) -> list[dict[str, Any]]:
    """A row a class and one over all."""
    classes = [
        {"class": row.class_name, "images": row.images, "scored": row.scored, "anomalous": row.anomalous,
         "unreadable": row.unreadable, "moved": "yes" if row.drift and row.drift.moved else "", "seconds": ""}
        for row in summary.classes
    ]  # fmt: skip
    unreadable, moved = sum(summary.unreadable.values()), "yes" if summary.moved else ""
    return [
        *classes,
        {"class": f"all of {summary.collection}", "images": summary.images, "scored": summary.scored,
         "anomalous": summary.anomalous, "unreadable": unreadable, "moved": moved, "seconds": summary.seconds},
    ]  # fmt: skip


def highest_images(store: Store, collection: str, model: ModelVersion, night: Night) -> str:
    """A Markdown table of the images with the highest scores; one that can no longer be read, or has no map, is left out."""
    scored: pd.DataFrame = night.rows[night.rows["score"].notna()]
    highest = scored.sort_values("score", ascending=False, kind="stable").head(HIGHEST)
    highest = read_rest(store, collection, model, highest)
    config = bundle_config(store, model)
    grids = read_grids(store, collection, model, highest)
    lines = ["| image | abnormal probability | score | decision | class | name |", "|---|---|---|---|---|---|"]
    for row in records(highest):
        if row["image_id"] not in grids:
            continue
        try:
            pictures = image_and_heat(row, grids[row["image_id"]], row["mask_uri_truth"], config, SIDE)
        except UnreadableImage:
            continue
        image, heat = (data_uri(picture, quality=85) for picture in pictures)
        name = as_text(row["uri"].rpartition("/")[2])
        facts = (f"{row['score']:.3f}", row["decision"] or "–", as_text(row["class_name"]), name)
        lines.append(f"| ![image]({image}) | ![heat map]({heat}) | {' | '.join(facts)} |")
    return "\n".join(lines) if len(lines) > 2 else "No image was scored."
