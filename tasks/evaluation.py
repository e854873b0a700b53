"""Metrics of a scored, labelled collection: from the tables in the store to an MLflow run.

The patch grids are read from the store once. Maps are made of them one by one, at the size of the protocol, and ranked
on disk (models.ranking): memory does not depend on how many maps a class has, and nothing is rounded. They are made twice,
for the bootstrap (models.pixel_intervals) has to know their range before.
"""

import hashlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import mlflow
import mlflow.data.pandas_dataset
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from prefect import task

from models.detector import DetectorConfig
from models.intervals import RESAMPLES, Draws, Interval, bootstrap_image_metrics, interval
from models.maps import upsample
from models.metrics import image_metrics
from models.pixel_intervals import PixelBootstrap, bins_of
from models.preprocess import preprocess_mask
from models.ranking import Curve, PixelRanking, PixelResult, one_class_reason
from tasks.errors import InputError
from tasks.figures import Curves, save_histogram
from tasks.grids import spilled_grids
from tasks.images import UnreadableImage, read_mask
from tasks.manifest import Manifest, labelled_test_rows, manifest_folder, read_manifest, records
from tasks.pictures import image_and_heat, side_by_side
from tasks.registry import ModelVersion, bundle_config, tracked_run
from tasks.retries import RETRIED
from tasks.scored import read_scores
from tasks.shards import check_bundle, model_folder
from tasks.store import Store
from tasks.tables import to_parquet

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_standard")
METRICS = IMAGE_METRICS + PIXEL_METRICS
AUPRO_DEFINITION: Literal["official"] = "official"  # of `aupro`: as the published code has it; see models.metrics.aupro
RANKED = dict(zip(PIXEL_METRICS, ("auroc", "ap", "f1_max", AUPRO_DEFINITION, "standard"), strict=True))  # in models
PIXEL_DRAWS = "pixel_resamples.parquet"  # artifact of a run
SEED = 0  # of the bootstrap
FACTS = ["image_id", "uri", "etag", "class_name", "split", "defect_type", "label", "mask_uri"]  # of the manifest
MASKS_AT_ONCE, READERS = 32, 8
WORST = 8  # images shown of each kind of error
PICTURE = 448  # pixels, the longer side


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class in [0, 1], None where undefined; aupro and aupro_standard are the two definitions.

    images: those with a score; unscored: labelled ones that could not be read, and take no part;
    intervals: of each metric that is defined, 95 % by bootstrap over the images (see models.pixel_intervals);
    undefined: why a metric is None.
    """

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
    aupro_standard: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    unscored: int = 0


@dataclass(frozen=True)
class EvaluatedClass:
    """A class with what only its figures and the mean need: the PRO curve and the bootstrapped metrics, where defined.

    truth: a digest of the masks that the pixel metrics were measured against.
    """

    metrics: ClassMetrics
    curve: Curve | None
    draws: Draws
    truth: str


class Grids(Protocol):
    """Patch grids (g, g) float32 by image id."""

    def __getitem__(self, image: str, /) -> np.ndarray: ...


# --- metrics ----------------------------------------------------------------------------------------------------------


def evaluate_class(
    name: str, rows: pd.DataFrame, grids: Grids, config: DetectorConfig, seed: list[int]
) -> EvaluatedClass:
    """rows: the labelled images of the class, in an order that the bootstrap can be repeated with; score null: unscored."""
    unscored, rows = int(rows["score"].isna().sum()), with_score(rows)
    labels, scores = labels_and_scores(rows)
    anomalous = int(labels.sum())
    values = {f"image_{metric}": value for metric, value in image_metrics(labels, scores).items()}
    undefined, bootstrapped = dict[str, str](), bootstrap_image_metrics(labels, scores, seed=seed)
    if bootstrapped is None:
        undefined = dict.fromkeys(IMAGE_METRICS, one_class_reason(anomalous, len(labels) - anomalous, "image"))
    draws = {f"image_{metric}": drawn for metric, drawn in (bootstrapped or {}).items()}
    ranked, resampled, truth = rank_maps(rows, grids, config, seed)
    values |= {metric: (ranked.pixel | ranked.aupro)[name] for metric, name in RANKED.items()}
    draws |= {metric: resampled[name] for metric, name in RANKED.items() if values[metric] is not None}
    for reason in ranked.undefined.values():  # of all of them or of one definition
        undefined |= {metric: reason for metric in PIXEL_METRICS if values[metric] is None}
    found = ClassMetrics(
        name, len(labels), anomalous, **values, intervals=intervals_of(draws), undefined=undefined, unscored=unscored
    )
    return EvaluatedClass(found, ranked.curve, draws, truth)


def mean_over_classes(classes: list[EvaluatedClass]) -> ClassMetrics:
    """Unweighted means, as the paper takes them, over the classes where a metric is defined.

    Their intervals come of the same resamples: within each class, independent of the other classes.
    """
    rows, means = [each.metrics for each in classes], dict[str, float | None]()
    for metric in METRICS:
        values = [value for row in rows if (value := getattr(row, metric)) is not None]
        means[metric] = float(np.mean(values)) if values else None
    undefined = {metric: "undefined in every class" for metric, value in means.items() if value is None}
    draws = {
        metric: np.mean([each.draws[metric] for each in classes if metric in each.draws], axis=0)
        for metric in METRICS
        if means[metric] is not None
    }
    return ClassMetrics(
        "mean", sum(row.images for row in rows), sum(row.anomalous for row in rows), **means,
        intervals=intervals_of(draws), undefined=undefined, unscored=sum(row.unscored for row in rows),
    )  # fmt: skip


def intervals_of(draws: Draws) -> dict[str, Interval]:
    return {metric: interval(drawn) for metric, drawn in draws.items() if np.isfinite(drawn).any()}


def labels_and_scores(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return rows["label"].to_numpy(int), rows["score"].to_numpy(float)


def with_score(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["score"].notna()]


def rank_maps(
    rows: pd.DataFrame, grids: Grids, config: DetectorConfig, seed: list[int]
) -> tuple[PixelResult, Draws, str]:
    """All pixels of a class's images whose truth is known, what the bootstrap drew of these images, a digest of the masks.

    One map and a few masks are in memory at a time.
    """
    known = with_truth(rows)
    if known.empty:
        reason = "no masks" if (rows["label"] == 1).any() else "no anomalous image"
        undefined = PixelResult(
            dict.fromkeys(("auroc", "ap", "f1_max")), dict.fromkeys(("official", "standard")), None, {"pixel": reason}
        )
        return undefined, {}, ""
    truth, labels = partial(ground_truth, size=config.image_size), known["label"].to_numpy(int)
    digest = hashlib.sha256()
    bootstrap = PixelBootstrap(labels, bins_of(labels, maps_of(known["image_id"], grids, config)), seed=seed)
    with PixelRanking() as ranking, ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(known), MASKS_AT_ONCE):
            some = known.iloc[start : start + MASKS_AT_ONCE]
            masks = readers.map(truth, some["mask_uri"])
            for (mask, stored), anomaly_map in zip(masks, maps_of(some["image_id"], grids, config), strict=True):
                ranking.add(mask, anomaly_map)
                bootstrap.add(mask, anomaly_map)
                digest.update(stored)
        return ranking.result(), bootstrap.draws(), digest.hexdigest()


def maps_of(images: Iterable[str], grids: Grids, config: DetectorConfig) -> Iterator[np.ndarray]:
    """(S, S) float32, one by one."""
    for image in images:
        yield upsample(torch.tensor(grids[image]), config.image_size, config.sigma).numpy()


def with_truth(rows: pd.DataFrame) -> pd.DataFrame:
    """What takes part in pixel metrics: of classes with any mask all images but anomalous ones without a mask."""
    masked = rows["mask_uri"].notna()
    return rows[(masked | (rows["label"] == 0)) & masked.groupby(rows["class_name"]).transform("any")]


def ground_truth(mask_uri: Any, size: int) -> tuple[np.ndarray, bytes]:
    """(size, size) bool, and a digest of the mask as it is stored: that of two models' evaluations is the same."""
    if pd.isna(mask_uri):
        return np.zeros((size, size), bool), b""
    mask = read_mask(mask_uri)
    return preprocess_mask(mask, size), hashlib.sha256(repr(mask.size).encode() + mask.tobytes()).digest()


# --- from the store ---------------------------------------------------------------------------------------------------


@task(name="evaluate", task_run_name="evaluate {collection}", **RETRIED)
def evaluate_collection(store: str, collection: str, model: ModelVersion) -> tuple[list[ClassMetrics], str]:
    """Metrics by class with their mean last, and the MLflow run that they were logged to."""
    target = Store(store)
    return log_evaluation(target, collection, model, bundle_config(target, model))


def log_evaluation(
    store: Store, collection: str, model: ModelVersion, config: DetectorConfig
) -> tuple[list[ClassMetrics], str]:
    manifest = read_manifest(store, collection, FACTS, labelled=True)
    labelled = scored_rows(store, manifest, model)
    rows = with_score(labelled)
    worst = worst_images(rows)
    shown = pd.concat([with_truth(rows), *worst.values()])["image_id"]
    with (
        tempfile.TemporaryDirectory(prefix="anomalyclip-") as name,
        spilled_grids(store, collection, model, shown) as grids,
    ):
        classes, curves = [], Curves()
        for number, (class_name, members) in enumerate(labelled.groupby("class_name", sort=True)):
            found = evaluate_class(str(class_name), members, grids, config, [SEED, number])
            curves.add(found.metrics.class_name, *labels_and_scores(with_score(members)), found.curve)
            classes.append(found)
        table = [*(each.metrics for each in classes), mean_over_classes(classes)]
        save_scores(rows, Path(name) / "scores.parquet")
        save_pixel_draws(classes, with_truth(rows), Path(name) / PIXEL_DRAWS)
        curves.save(Path(name) / "curves.png")
        save_histogram(rows, Path(name) / "histogram.png")
        save_pictures(worst, grids, config, Path(name) / "worst")
        facts = parameters(manifest, model, config) | {"unscored": table[-1].unscored}
        with tracked_run(store, f"evaluate {collection}", facts) as run_id:
            mlflow.set_tag("step", "evaluate")
            log_metrics(table)
            log_dataset(store, manifest)
            mlflow.log_artifacts(name)
    return table, run_id


def labelled_rows(manifest: Manifest) -> pd.DataFrame:
    """Of a manifest's labelled rows those of no split but `test`; InputError where there are none."""
    labelled = labelled_test_rows(manifest.rows)
    if not labelled.empty:
        return labelled
    others = manifest.rows["split"].dropna().unique()
    if len(others):
        raise InputError(
            f"all labelled images of {manifest.collection!r} are of the split {', '.join(map(repr, others))}: only those of "
            "'test', or of none, are evaluated"
        )
    raise InputError(
        f"the collection {manifest.collection!r} has no labels: ingest it with a layout that has them (folders, mvtec)"
    )


def scored_rows(store: Store, manifest: Manifest, model: ModelVersion) -> pd.DataFrame:
    """Labelled rows of the manifest with their scores, by image_id; null where the image could not be read.

    Raises InputError where there are no labels, where images have not been scored yet or by another bundle of the model's
    name, and where none could be read.
    """
    labelled = labelled_rows(manifest)
    folder = model_folder(manifest.collection, model.partition)
    names, ids = store.find(*folder, suffix=".parquet"), pa.array(labelled["image_id"], pa.string())
    scores = read_scores(store, folder, names, ["image_id", "score", "bundle_digest"], ids)
    check_bundle(manifest.collection, model, scores["bundle_digest"])
    found = scores.select(["image_id", "score"]).to_pandas().drop_duplicates("image_id")
    joined = labelled.merge(found, on="image_id", how="inner")
    if missing := len(labelled) - len(joined):
        raise InputError(
            f"{model.uri} has not scored {missing} of the {len(labelled)} labelled images of {manifest.collection!r}: "
            f"run `anomalyclip score --collection {manifest.collection}` first, with the same --model"
        )
    if with_score(joined).empty:
        raise InputError(f"none of the {len(joined)} labelled images of {manifest.collection!r} can be read")
    return joined.sort_values("image_id", ignore_index=True)


def worst_images(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The normal images with the highest scores and the anomalous ones with the lowest, the worst first."""
    by_score = rows.sort_values("score", kind="stable")
    return {
        "false_positives": by_score[by_score["label"] == 0].tail(WORST)[::-1],
        "false_negatives": by_score[by_score["label"] == 1].head(WORST),
    }


# --- MLflow -----------------------------------------------------------------------------------------------------------


def parameters(manifest: Manifest, model: ModelVersion, config: DetectorConfig) -> dict[str, Any]:
    return {
        "collection": manifest.collection, "manifest_digest": manifest.digest,
        "model": model.uri, "model_version": model.version, "bundle_digest": model.digest,
        "backbone": config.backbone, "backbone_sha256": config.weights_sha256, "image_size": config.image_size,
        "feature_layers": list(config.feature_layers), "aupro_definition": AUPRO_DEFINITION,
        "bootstrap_seed": SEED, "bootstrap_resamples": RESAMPLES,
    }  # fmt: skip


def log_metrics(table: list[ClassMetrics]) -> None:
    """By class (`image_auroc/bottle`, `image_auroc_low/bottle`), those of the mean without a class; and as a table."""
    for row in table:
        suffix = "" if row is table[-1] else f"/{metric_name(row.class_name)}"
        values = {metric: getattr(row, metric) for metric in METRICS} | bounds(row)
        mlflow.log_metrics({f"{metric}{suffix}": value for metric, value in values.items() if value is not None})
    rows = [flat(row) for row in table]
    mlflow.log_table({name: [row[name] for row in rows] for name in rows[0]}, "metrics.json")


def flat(row: ClassMetrics) -> dict[str, Any]:
    """A row of a table: no nested values, and `aupro` under the name of its definition."""
    facts = asdict(row) | bounds(row)
    del facts["intervals"]
    facts["undefined"] = "; ".join(f"{column(metric)}: {reason}" for metric, reason in row.undefined.items())
    return {column(name): value for name, value in facts.items()}


def column(name: str) -> str:
    metric = name.removesuffix("_low").removesuffix("_high")
    return name.replace("aupro", f"aupro_{AUPRO_DEFINITION}") if metric == "aupro" else name


def bounds(row: ClassMetrics) -> dict[str, float | None]:
    """The intervals as metrics of their own: `image_auroc_low`, `image_auroc_high`, …"""
    ends = {metric: row.intervals.get(metric, (None, None)) for metric in METRICS}
    return {f"{metric}_{end}": ends[metric][i] for metric in ends for i, end in enumerate(("low", "high"))}


def metric_name(class_name: str) -> str:
    """MLflow allows 250 letters, digits and some signs in a metric's name, and no path that leads to another name.

    What had to be changed ends in a checksum of the name, so that no two classes share a metric.
    """
    allowed = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in class_name[:200])
    name = "/".join(part if part.strip(".") else "_" for part in allowed.split("/"))
    return name if name == class_name else f"{name}-{zlib.crc32(class_name.encode()):08x}"


def log_dataset(store: Store, manifest: Manifest) -> None:
    source = store.uri_of(*manifest_folder(manifest.collection))
    rows = manifest.rows[FACTS].astype({"label": float})  # MLflow's schema has no integers with nulls
    dataset = mlflow.data.pandas_dataset.from_pandas(
        rows, source=source, name=manifest.collection, digest=manifest.digest
    )
    mlflow.log_input(dataset, context="evaluation")


def save_scores(rows: pd.DataFrame, path: Path) -> None:
    columns = ["image_id", "uri", "class_name", "label", "score"]
    path.write_bytes(to_parquet(pa.Table.from_pandas(rows[columns], preserve_index=False)))


def save_pixel_draws(classes: list[EvaluatedClass], known: pd.DataFrame, path: Path) -> None:
    """Pixel metrics by class: a row with what was measured, then a row a resample; null where undefined.

    `images` is a digest of what the draws depend on: where that of two runs is the same, their resamples are paired.
    known: the images with a truth, in their order. Nothing is written where no class has pixel metrics.
    """
    frames, images = [], {str(name): members for name, members in known.groupby("class_name")}
    for number, each in enumerate(classes):
        name, measured = each.metrics.class_name, asdict(each.metrics)
        drawn = {m: [measured[m], *each.draws[m]] for m in PIXEL_METRICS if m in each.draws}
        if drawn:
            frames.append(
                pd.DataFrame({"class_name": name, "images": drawn_digest(images[name], number, each.truth), **drawn})
            )
    if frames:
        path.write_bytes(to_parquet(pa.Table.from_pandas(pd.concat(frames), preserve_index=False)))


def drawn_digest(images: pd.DataFrame, number: int, truth: str) -> str:
    drawn = f"{SEED} {number} {RESAMPLES} {truth}\n{images.to_csv(columns=['image_id', 'label'], index=False)}"
    return hashlib.sha256(drawn.encode()).hexdigest()[:16]


def save_pictures(worst: Mapping[str, pd.DataFrame], grids: Grids, config: DetectorConfig, folder: Path) -> None:
    """Images beside their heat maps, as `<kind>/<place>_<score>_<class>_<image_id>.jpg`, without those that are gone."""
    for kind, rows in worst.items():
        (folder / kind).mkdir(parents=True)
        for place, row in enumerate(records(rows), start=1):
            try:
                image, heat = image_and_heat(row, grids[row["image_id"]], row["mask_uri"], config, PICTURE)
            except UnreadableImage:
                continue
            name = f"{place}_{row['score']:.3f}_{file_name(row['class_name'])}_{row['image_id']}.jpg"
            side_by_side(image, heat).save(folder / kind / name, quality=85)


def file_name(class_name: str) -> str:
    """What of a class's name any file system and any URI can hold."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "-") else "_" for c in class_name)[:40]
