"""The page that people look at: one self-contained HTML file with the highest and the lowest scores and their heat maps.

Names and labels are escaped by the template engine.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, select_autoescape
from matplotlib import colormaps
from PIL import Image
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.detector import DetectorConfig, read_bundle_config
from tasks.evaluation import ClassMetrics
from tasks.grids import read_grids
from tasks.images import UnreadableImage
from tasks.manifest import records
from tasks.pictures import image_and_heat
from tasks.registry import ModelVersion, bundle_folder
from tasks.retries import DELAYS, JITTER, RETRIES, transient
from tasks.scored import read_scored
from tasks.store import Store

THUMBNAIL = 224  # pixels, the longer side
HIGHEST, LOWEST = 18, 6  # images shown of each collection


@dataclass(frozen=True)
class Card:
    """One image: pictures are data URIs; label is 0, 1 or None; kind names the defect where it is known."""

    name: str
    uri: str
    class_name: str
    label: int | None
    kind: str | None
    score: float
    regions: int
    image: str
    heat: str


@dataclass(frozen=True)
class Section:
    """One collection of the page."""

    collection: str
    model: str
    images: int
    highest: list[Card]
    lowest: list[Card]
    unreadable: list[dict[str, Any]]
    metrics: list[ClassMetrics] = field(default_factory=list)


@task(
    name="report", cache_policy=NO_CACHE,
    retries=RETRIES, retry_delay_seconds=DELAYS, retry_jitter_factor=JITTER, retry_condition_fn=transient,
)  # fmt: skip
def write_report(
    store: str,
    run_id: str,
    model: ModelVersion,
    metrics: dict[str, list[ClassMetrics]],
    title: str,
    notice: str = "",
    first_part: int = 0,
) -> str:
    """Write the page over the named collections, with their metrics where there are any; returns its URI.

    notice: what must not be missed, above everything; first_part: of the manifest, where only newer ones are shown.
    """
    target = Store(store)
    with bundle_folder(target, model) as folder:
        config = read_bundle_config(folder)
    sections = [build_section(target, name, model, config, found, first_part) for name, found in metrics.items()]
    return target.write(render(title, sections, config, notice).encode(), "reports", run_id, "index.html")


def render(title: str, sections: list[Section], config: DetectorConfig, notice: str) -> str:
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("tasks") / "report.html").read_text(encoding="utf-8"))
    return template.render(title=title, notice=notice, sections=sections, config=config, scale=heat_scale())


def build_section(
    store: Store,
    collection: str,
    model: ModelVersion,
    config: DetectorConfig,
    metrics: list[ClassMetrics],
    first_part: int = 0,
) -> Section:
    """The collection's scores by this model; pictures are made only of the images that are shown."""
    rows = read_scored(store, collection, model, first_part)
    scored = rows[rows["score"].notna()].sort_values("score", ascending=False, kind="stable")
    highest, lowest = scored.head(HIGHEST), scored.tail(LOWEST)[::-1]
    grids = read_grids(store, collection, model, [*highest["image_id"], *lowest["image_id"]], first_part)
    shown = [card for row in records(highest) if (card := build_card(row, grids, config))]
    quiet = [card for row in records(lowest) if (card := build_card(row, grids, config))]
    unreadable = list(records(rows[rows["error_kind"].notna()][["uri", "error_kind", "error_detail"]]))
    return Section(collection, model.partition, len(rows), shown, quiet, unreadable, metrics)


def build_card(row: Mapping[str, Any], grids: Mapping[str, np.ndarray], config: DetectorConfig) -> Card | None:
    """None where the image that was scored can no longer be read."""
    try:
        image, heat = image_and_heat(row, grids[row["image_id"]], row["mask_uri_truth"], config, THUMBNAIL)
    except UnreadableImage:
        return None
    label = None if pd.isna(row["label"]) else int(row["label"])
    return Card(
        row["uri"].rpartition("/")[2], row["uri"], row["class_name"], label, row["defect_type"], row["score"],
        0 if row["regions"] is None else len(row["regions"]), data_uri(image), data_uri(heat),
    )  # fmt: skip


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_scale() -> str:
    """The colours from 0 to 1, as CSS stops."""
    stops = (colormaps["inferno"](value)[:3] for value in np.linspace(0, 1, 9))
    return ", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*(255 * c for c in stop)) for stop in stops)
