"""Metrics of a scored, labelled collection: from the tables in the store to an MLflow run."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
import mlflow.data.pandas_dataset
import numpy as np
import pandas as pd
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from models.detector import DetectorConfig, read_bundle_config
from models.maps import upsample
from models.metrics import image_metrics, pro_curve, rank, rank_pixels
from models.preprocess import preprocess_mask
from tasks.errors import InputError
from tasks.images import read_mask
from tasks.manifest import Manifest, labelled_test_rows, read_manifest
from tasks.registry import ModelVersion, bundle_folder, tracked_run
from tasks.scoring import part_number, scores_folder
from tasks.store import Store
from tasks.tables import MAPS, SCORES, read_parquet, read_parts, to_parquet

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")
AUPRO_DEFINITION: Literal["official"] = "official"  # as the published code has it; see models.metrics.aupro


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class in [0, 1]; None where undefined: one kind of image only, or no ground truth of regions."""

    class_name: str
    images: int
    anomalous: int
    image_auroc: float | None
    image_ap: float | None
    image_f1_max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1_max: float | None
    aupro: float | None


@dataclass(frozen=True)
class Scored:
    """The labelled images of one class that have a score; grids (N, g, g), masks (N, S, S) or None without ground truth.

    pixel_rows: the images that take part in pixel metrics, all but anomalous ones without a mask.
    """

    rows: pd.DataFrame
    maps: np.ndarray | None
    masks: np.ndarray | None


def evaluate_class(name: str, scored: Scored) -> ClassMetrics:
    labels, scores = scored.rows["label"].to_numpy(int), scored.rows["score"].to_numpy(float)
    image = image_metrics(labels, scores)
    pixel: Mapping[str, float | None] = {"auroc": None, "ap": None, "f1_max": None}
    overlap = None
    if scored.maps is not None and scored.masks is not None:
        ranked = rank_pixels(scored.masks, scored.maps)
        pixel, overlap = ranked.pixel, ranked.aupro[AUPRO_DEFINITION]
    return ClassMetrics(
        name, len(labels), int(labels.sum()),
        image["auroc"], image["ap"], image["f1_max"], pixel["auroc"], pixel["ap"], pixel["f1_max"], overlap,
    )  # fmt: skip


def mean_over_classes(classes: list[ClassMetrics]) -> ClassMetrics:
    """Unweighted means, as the paper takes them, over the classes where a metric is defined."""
    means = {}
    for metric in METRICS:
        values = [getattr(c, metric) for c in classes if getattr(c, metric) is not None]
        means[metric] = float(np.mean(values)) if values else None
    return ClassMetrics("mean", sum(c.images for c in classes), sum(c.anomalous for c in classes), **means)


def labelled_rows(manifest: Manifest) -> pd.DataFrame:
    """Labelled rows of the manifest; InputError where there are none."""
    labelled = labelled_test_rows(manifest.rows)
    if labelled.empty:
        raise InputError(
            f"the collection {manifest.collection!r} has no labels: ingest it with a layout that has them (folders, mvtec)"
        )
    return labelled


def scored_rows(store: Store, manifest: Manifest, model: ModelVersion) -> pd.DataFrame:
    """Labelled rows of the manifest with their scores; InputError where there are no labels or no scores."""
    labelled = labelled_rows(manifest)
    folder = scores_folder(manifest.collection, model.partition)
    table = read_parts(store, *folder, schema=SCORES, columns=["image_id", "score", "mask_uri", "error_kind"])
    scores = table.to_pandas().drop_duplicates("image_id")
    joined = labelled.merge(scores, on="image_id", how="inner", suffixes=("", "_predicted"))
    joined = joined[joined["score"].notna()]
    if joined.empty:
        raise InputError(
            f"{model.uri} has scored no labelled image of {manifest.collection!r}: "
            f"run `anomalyclip score --collection {manifest.collection}` first"
        )
    return joined


def read_grids(
    store: Store, collection: str, model: ModelVersion, images: Iterable[str], first_part: int = 0
) -> dict[str, np.ndarray]:
    """Patch grids (g, g) float32 of these images, by their ids; one part of the maps is in memory at a time.

    first_part: of the manifest; the images lie in none before it.
    """
    folder, wanted, grids = scores_folder(collection, model.partition, "maps"), set(images), {}
    for part in store.find(*folder, suffix=".parquet"):
        if part_number(part) < first_part:
            continue
        columns = (column.to_pylist() for column in read_parquet(store, *folder, part).select(MAPS.names))
        for image, rows, cols, values in zip(*columns, strict=True):
            if image in wanted:
                grids[image] = np.frombuffer(values, "<f4").reshape(rows, cols)
    return grids


def by_class(
    rows: pd.DataFrame, grids: Mapping[str, np.ndarray], config: DetectorConfig
) -> Iterator[tuple[str, Scored]]:
    """The classes one after the other: the maps of only one are in memory."""
    for name, class_rows in rows.groupby("class_name", sort=True):
        with_truth = class_rows[(class_rows["label"] == 0) | class_rows["mask_uri"].notna()]
        if not class_rows["mask_uri"].notna().any():
            yield str(name), Scored(class_rows, None, None)
            continue
        stacked = torch.from_numpy(np.stack([grids[image] for image in with_truth["image_id"]]))
        maps = upsample(stacked, config.image_size, config.sigma).numpy()
        masks = np.stack([ground_truth(uri, config.image_size) for uri in with_truth["mask_uri"]])
        yield str(name), Scored(class_rows, maps, masks)


def ground_truth(mask_uri: Any, size: int) -> np.ndarray:
    if pd.isna(mask_uri):
        return np.zeros((size, size), bool)
    return preprocess_mask(read_mask(mask_uri), size)


# --- MLflow -----------------------------------------------------------------------------------------------------------


@task(name="evaluate", task_run_name="evaluate {collection}", cache_policy=NO_CACHE)
def evaluate_collection(store: str, collection: str, model: ModelVersion) -> tuple[list[ClassMetrics], str]:
    """Metrics by class with their mean last, and the MLflow run that they were logged to."""
    with bundle_folder(Store(store), model) as folder:
        config = read_bundle_config(folder)
    return log_evaluation(Store(store), collection, model, config)


def log_evaluation(
    store: Store, collection: str, model: ModelVersion, config: DetectorConfig
) -> tuple[list[ClassMetrics], str]:
    manifest = read_manifest(store, collection)
    rows = scored_rows(store, manifest, model)
    grids = read_grids(store, collection, model, rows["image_id"])
    classes, curves = [], Curves()
    for name, scored in by_class(rows, grids, config):
        classes.append(evaluate_class(name, scored))
        curves.add(name, scored)
    table = [*classes, mean_over_classes(classes)]
    params = {
        "collection": collection, "model": model.uri, "bundle_digest": model.digest, "manifest_digest": manifest.digest,
        "backbone": config.backbone, "backbone_sha256": config.weights_sha256, "image_size": config.image_size,
        "feature_layers": list(config.feature_layers), "aupro_definition": AUPRO_DEFINITION,
    }  # fmt: skip
    with tracked_run(store, f"evaluate {collection}", params) as run_id:
        mlflow.set_tag("step", "evaluate")
        log_metrics(table)
        log_dataset(store, manifest)
        log_files(rows, curves)
    return table, run_id


def log_metrics(table: list[ClassMetrics]) -> None:
    for row in table:
        suffix = "" if row is table[-1] else f"/{metric_name(row.class_name)}"
        values = {f"{metric}{suffix}": getattr(row, metric) for metric in METRICS}
        mlflow.log_metrics({name: value for name, value in values.items() if value is not None})
    mlflow.log_table({name: [asdict(row)[name] for row in table] for name in asdict(table[0])}, "metrics.json")


def metric_name(class_name: str) -> str:
    """MLflow allows letters, digits and some signs in the names of metrics, and no path that leads to another name."""
    allowed = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in class_name)
    return "/".join(part if part.strip(".") else "_" for part in allowed.split("/"))


def log_dataset(store: Store, manifest: Manifest) -> None:
    source = store.uri_of("collections", manifest.collection, "manifest")
    rows = manifest.rows[["image_id", "uri", "etag", "class_name", "split", "defect_type", "mask_uri"]].copy()
    rows["label"] = manifest.rows["label"].astype(float)  # MLflow's schema has no integers with nulls
    dataset = mlflow.data.pandas_dataset.from_pandas(
        rows, source=source, name=manifest.collection, digest=manifest.digest
    )
    mlflow.log_input(dataset, context="evaluation")


def log_files(rows: pd.DataFrame, curves: "Curves") -> None:
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as name:
        folder = Path(name)
        columns = ["image_id", "uri", "class_name", "label", "score"]
        (folder / "scores.parquet").write_bytes(to_parquet(pa.Table.from_pandas(rows[columns], preserve_index=False)))
        curves.save(folder / "curves.png")
        save_histogram(rows, folder / "histogram.png")
        mlflow.log_artifacts(name)


class Curves:
    """ROC and precision-recall of the image scores and PRO of the maps, a line a class."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(15, 5), layout="constrained")
        self.axes = dict(zip(("roc", "pr", "pro"), self.figure.subplots(1, 3), strict=True))
        titles = {
            "roc": ("Image ROC", "false positive rate", "true positive rate"),
            "pr": ("Image precision-recall", "recall", "precision"),
            "pro": ("Per-region overlap", "false positive rate of pixels", "mean overlap"),
        }
        for name, (title, x, y) in titles.items():
            self.axes[name].set(title=title, xlabel=x, ylabel=y, xlim=(0, 0.3 if name == "pro" else 1), ylim=(0, 1.02))

    def add(self, class_name: str, scored: Scored) -> None:
        ranked = rank(scored.rows["label"].to_numpy(int), scored.rows["score"].to_numpy(float))
        if ranked:
            self.axes["roc"].plot(*ranked.roc(), label=class_name)
            precision, recall = ranked.precision_recall()
            self.axes["pr"].step(recall, precision, where="post", label=class_name)
        if scored.maps is not None and (curve := pro_curve(scored.masks, scored.maps)):
            fpr, overlap = curve
            step = max(1, len(fpr) // 4000)  # a figure needs no more points
            self.axes["pro"].plot(fpr[::step], overlap[::step], label=class_name)

    def save(self, path: Path) -> None:
        for axes in self.axes.values():
            if axes.lines and len(axes.lines) <= 20:
                axes.legend(fontsize="small")
        self.figure.savefig(path, dpi=100)


def save_histogram(rows: pd.DataFrame, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, name in ((0, "normal"), (1, "anomalous")):
        axes.hist(
            rows.loc[rows["label"] == label, "score"].to_numpy(float),
            [i / 40 for i in range(41)],
            alpha=0.6,
            label=name,
        )
    axes.set(xlabel="image score", ylabel="images", title="Scores by label")
    axes.legend()
    figure.savefig(path, dpi=100)
