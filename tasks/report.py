"""The page that people look at: one self-contained HTML file over what a model has said of a collection.

Anomalous images come first, then the others by their score, then what cannot be read. The first ones and the last have a
picture, with its heat, its regions and the ground truth as layers; the others are rows, of which the browser makes as many
as are looked at. Heat is on one absolute scale. Names and labels are hostile: the template escapes them, the script takes
them from JSON and writes text alone, and a content security policy lets nothing else run or load.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, select_autoescape
from markupsafe import Markup
from matplotlib import colormaps
from prefect import task

from models.detector import DetectorConfig
from tasks.evaluation import ClassMetrics
from tasks.grids import read_grids
from tasks.images import UnreadableImage, few_if_large
from tasks.manifest import records
from tasks.pictures import data_uri, heat_layer, probability_at, read_thumbnail, truth_outline
from tasks.registry import ModelVersion, bundle_config
from tasks.retries import RETRIED
from tasks.scored import common_folder, read_outline, read_rest
from tasks.store import Store

HIGHEST, LOWEST = 96, 12  # images that have a picture, at most
PICTURE, HEAT = 384, 96  # pixels, the longer side
PICTURE_BYTES = 3_500_000  # of all pictures, at most: the page stays below 6 MB
LISTED, NAME_BYTES = 20_000, 1_500_000  # images that the page names, and bytes of their names, at most
READERS = 8  # threads that make pictures
STATES = ("anomalous", "undecided", "normal", "unreadable")


@dataclass(frozen=True)
class Picture:
    """Layers as data URIs; width and height are the original image's; regions: x, y, w, h, area and peak in its pixels."""

    width: int
    height: int
    image: str
    heat: str
    truth: str | None
    regions: list[tuple[float, ...]]

    @property
    def bytes(self) -> int:
        return len(self.image) + len(self.heat) + len(self.truth or "")


@dataclass(frozen=True)
class ClassCounts:
    """Images of a class by state; highest: its highest score, None where nothing has one."""

    class_name: str
    images: int
    states: dict[str, int]
    highest: float | None


@task(name="report", **RETRIED)
def write_report(
    store: str,
    run_id: str,
    model: ModelVersion,
    metrics: dict[str, list[ClassMetrics]],
    title: str,
    notice: str = "",
    first_part: int = 0,
    end: int | None = None,
) -> str:
    """Write the page over the named collections, with their metrics where there are any; returns its URI.

    notice: what must not be missed, above everything; first_part, end: of the manifest's parts those from the one on and
    before the other are shown.
    """
    target = Store(store)
    config = bundle_config(target, model)
    rows = outline_of(target, list(metrics), model, first_part, end)
    listed = named(with_rest(target, list(metrics), model, first_rows(rows)))
    pictures = make_pictures(target, listed, model, config)
    page = render(title, notice, run_id, model, config, rows, metrics, page_data(listed, pictures))
    folder_of_page = ("collections", *metrics) if len(metrics) == 1 else ()
    return target.write(page.encode(), *folder_of_page, "reports", run_id, "index.html")


# --- what is shown ----------------------------------------------------------------------------------------------------


def outline_of(
    store: Store, collections: list[str], model: ModelVersion, first_part: int, end: int | None = None
) -> pd.DataFrame:
    """The outline of tasks.scored in the order of the page, with `collection`, `state`, and `group`: the class, as shown."""
    frames = [read_outline(store, name, model, first_part, end).assign(collection=name) for name in collections]
    rows = pd.concat(frames, ignore_index=True)
    decided = rows["decision"].fillna("undecided")
    rows["state"] = pd.Categorical(decided.where(rows["error_kind"].isna(), "unreadable"), STATES)
    rows["group"] = rows["class_name"] if len(collections) == 1 else rows["collection"] + " / " + rows["class_name"]
    rank = rows["state"].map({"anomalous": 0, "unreadable": 2}).astype(float).fillna(1)
    return rows.assign(rank=rank).sort_values(["rank", "score"], ascending=[True, False], kind="stable")


def turns(rows: pd.DataFrame) -> pd.Index:
    """In which order they find room on the page: anomalous ones before unreadable ones, and these before the rest."""
    return rows["rank"].map({0: 0, 2: 1, 1: 2}).sort_values(kind="stable").index


def first_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """As many as the page names, in the order of the page."""
    return rows[rows.index.isin(turns(rows)[:LISTED])]


def with_rest(store: Store, collections: list[str], model: ModelVersion, rows: pd.DataFrame) -> pd.DataFrame:
    """With all columns of tasks.scored."""
    whole = pd.concat([read_rest(store, name, model, rows[rows["collection"] == name]) for name in collections])
    return whole.loc[rows.index.intersection(whole.index, sort=False)]


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Those whose names find room, with the `name` of each: its URI below what all have in common."""
    root = common_folder(rows["uri"].min(), rows["uri"].max()) if len(rows) else ""
    names = rows.loc[turns(rows), "uri"].str.slice(len(root))
    fitting = names[names.map(lambda name: len(name.encode())).cumsum() <= NAME_BYTES]
    return rows[rows.index.isin(fitting.index)].assign(name=fitting, root=root)


def count_classes(rows: pd.DataFrame) -> list[ClassCounts]:
    """A row a class, those with the largest share of anomalous images first."""
    counts = []
    for name, group in rows.groupby("group"):
        states = {state: int((group["state"] == state).sum()) for state in STATES}
        highest = group["score"].max()
        counts.append(ClassCounts(str(name), len(group), states, None if pd.isna(highest) else float(highest)))
    return sorted(counts, key=lambda row: -row.states["anomalous"] / row.images)


def make_pictures(store: Store, rows: pd.DataFrame, model: ModelVersion, config: DetectorConfig) -> dict[int, Picture]:
    """Pictures of the first and of the last scored rows by their place, as many as the page can hold."""
    places = np.flatnonzero(rows["score"].notna())
    wanted = list(dict.fromkeys([*places[:HIGHEST], *places[-LOWEST:]]))
    shown = rows.iloc[wanted]
    grids: dict[str, np.ndarray] = {}
    for collection, same in shown.groupby("collection"):
        grids |= read_grids(store, str(collection), model, same)
    with ThreadPoolExecutor(READERS) as pool:
        made = pool.map(lambda row: make_picture(row, grids.get(row["image_id"]), config), records(shown))
        return within(PICTURE_BYTES, zip(map(int, wanted), made, strict=True))


def within(limit: int, pictures: Iterable[tuple[int, Picture | None]]) -> dict[int, Picture]:
    kept: dict[int, Picture] = {}
    for place, picture in pictures:
        limit -= picture.bytes if picture else 0
        if picture and limit >= 0:
            kept[place] = picture
    return kept


def make_picture(row: Mapping[str, Any], grid: np.ndarray | None, config: DetectorConfig) -> Picture | None:
    """None where the image that was scored can no longer be read, or its map was removed."""
    if grid is None:
        return None
    try:
        with few_if_large(row["size"]):
            image, (width, height) = read_thumbnail(row, PICTURE)
    except UnreadableImage:
        return None
    shrink = min(1, HEAT / max(image.size))
    rows, columns = (max(1, round(side * shrink)) for side in (image.height, image.width))
    heat = heat_layer(probability_at(grid, rows, columns, config))
    truth = truth_outline(row["mask_uri_truth"], image.size)
    regions = [tuple(region[key] for key in ("x", "y", "w", "h", "area", "peak")) for region in row["regions"]]
    return Picture(
        width, height, data_uri(image, "WEBP", quality=80), data_uri(heat, "WEBP", quality=80),
        data_uri(truth, "PNG", optimize=True) if truth else None, regions,
    )  # fmt: skip


# --- the page ---------------------------------------------------------------------------------------------------------


def page_data(rows: pd.DataFrame, pictures: Mapping[int, Picture]) -> dict[str, Any]:
    """What the script reads: columns with a value a row, and the pictures by place."""
    groups = list(dict.fromkeys(rows["group"]))
    peak_digits, number = 4, {name: place for place, name in enumerate(groups)}
    columns: dict[str, list[Any]] = {
        "name": rows["name"].tolist(),
        "group": [number[name] for name in rows["group"]],
        "state": [STATES.index(state) for state in rows["state"]],
        "regions": [0 if found is None else len(found) for found in rows["regions"]],
        "label": [None if pd.isna(label) else int(label) for label in rows["label"]],
    }
    for column in ("score", "p_value", "threshold"):
        columns[column] = [None if pd.isna(value) else round(float(value), peak_digits) for value in rows[column]]
    for column in ("defect_type", "error_kind", "error_detail"):
        columns[column] = [None if pd.isna(value) else value for value in rows[column]]
    shown = {
        place: {"size": [p.width, p.height], "image": p.image, "heat": p.heat, "truth": p.truth,
                "regions": [[round(value, peak_digits) for value in region] for region in p.regions]}
        for place, p in pictures.items()
    }  # fmt: skip
    return {"root": rows["root"].iloc[0] if len(rows) else "", "groups": groups, "columns": columns, "pictures": shown}


def render(
    title: str,
    notice: str,
    run_id: str,
    model: ModelVersion,
    config: DetectorConfig,
    rows: pd.DataFrame,
    metrics: Mapping[str, list[ClassMetrics]],
    data: Mapping[str, Any],
) -> str:
    style = read_file("report.css").replace("HEAT_SCALE", heat_scale())
    script = read_file("report.js")
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(read_file("report.html")).render(
        title=title, notice=notice, run_id=run_id, model=model, config=config, images=len(rows),
        listed=len(data["columns"]["name"]), states=rows["state"].value_counts().to_dict(),
        reasons=rows["error_kind"].value_counts().sort_index().to_dict(), classes=count_classes(rows),
        metrics={name: found for name, found in metrics.items() if found}, style=Markup(style), script=Markup(script),
        style_hash=content_hash(style), script_hash=content_hash(script), data=Markup(as_script_json(data)),
    )  # fmt: skip


def read_file(name: str) -> str:
    return (files("tasks") / name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """The source expression that lets an inline element of this content pass a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def as_script_json(data: Any) -> str:
    """JSON that cannot end, or be taken for anything but, the element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def heat_scale() -> str:
    """The colours from 0 to 1, as CSS stops."""
    stops = (colormaps["inferno"](value)[:3] for value in np.linspace(0, 1, 9))
    return ", ".join("rgb({:.0f} {:.0f} {:.0f})".format(*(255 * c for c in stop)) for stop in stops)
