"""Metrics of the streamed maps are those of models.metrics on all of them; undefined ones have a reason."""

import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from models import pixel_intervals, ranking
from models.detector import DetectorConfig
from models.intervals import bootstrap_image_metrics, interval
from models.maps import upsample
from models.metrics import aupro, image_metrics, pixel_metrics
from models.pixel_intervals import bootstrap_pixel_metrics
from models.preprocess import preprocess_mask
from tasks.comparison import compare_runs
from tasks.errors import InputError
from tasks.evaluation import (
    IMAGE_METRICS,
    METRICS,
    PIXEL_METRICS,
    WORST,
    evaluate_class,
    evaluate_collection,
    mean_over_classes,
    rank_maps,
)
from tasks.grids import stored_grids
from tasks.manifest import ingest_source, read_manifest
from tasks.scoring import score_shard
from tasks.shards import model_folder, plan_shards
from tasks.store import Store
from tasks.tables import SCORES, read_parts
from tests.memory import traced_peak
from tests.tasks.conftest import Registered, give_to_another_bundle, write_photos

CONFIG = DetectorConfig("embedded", "0" * 64, image_size=32, sigma=1.0)


@pytest.fixture
def scored(registered: Registered, tmp_path: Path) -> Registered:
    """Two classes, the second without anomalies."""
    root = tmp_path / "source"
    for name in ("nut", "bolt"):
        write_photos(root / name / "test/good", range(6))
    write_photos(root / "nut/test/hole", range(10, 14))
    (root / "nut/ground_truth/hole").mkdir(parents=True)
    for number in range(10, 14):
        mask = np.zeros((40, 60), np.uint8)
        mask[5:25, 10:35] = 255
        Image.fromarray(mask).save(root / f"nut/ground_truth/hole/{number:03d}_mask.png")
    ingest_source.fn(registered.store.uri, tmp_path.name, str(root), "mvtec", False)
    score(registered.store, registered, tmp_path.name)
    return registered


def score(store: Store, registered: Registered, collection: str) -> None:
    for shard in plan_shards(store, collection, registered.model.partition)[1]:
        score_shard.fn(store.uri, collection, registered.model, shard, "fp32")


def maps_of(registered: Registered, collection: str, images: list[str]) -> np.ndarray:
    grids = dict(stored_grids(registered.store, collection, registered.model, images))
    return np.stack([upsample(torch.tensor(grids[image]), 96, 4.0).numpy() for image in images])


def test_metrics_are_those_of_all_stored_scores_and_maps_together(scored: Registered, tmp_path: Path) -> None:
    store, collection = scored.store, tmp_path.name
    table, _ = evaluate_collection.fn(store.uri, collection, scored.model)
    bolt, nut, mean = table
    rows = scored_rows(scored, collection)
    rows = rows[rows["class_name"] == "nut"]
    image = image_metrics(rows["label"].to_numpy(int), rows["score"].to_numpy())
    maps, truth = maps_of(scored, collection, rows["image_id"].tolist()), truth_of(rows)
    pixel = pixel_metrics(truth, maps)
    assert (nut.images, nut.anomalous) == (10, 4)
    assert (nut.image_auroc, nut.image_ap, nut.image_f1_max) == pytest.approx(tuple(image.values()))
    assert (nut.pixel_auroc, nut.pixel_ap, nut.pixel_f1_max) == pytest.approx(tuple(pixel.values()), rel=1e-12)
    assert nut.aupro == pytest.approx(aupro(truth, maps, "official"), rel=1e-12)
    assert nut.aupro_standard == pytest.approx(aupro(truth, maps, "standard"), rel=1e-12)
    assert nut.undefined == {}
    assert [getattr(bolt, metric) for metric in METRICS] == [None] * len(METRICS)
    assert bolt.undefined == dict.fromkeys(METRICS, "no anomalous image")
    assert [getattr(mean, metric) for metric in METRICS] == [getattr(nut, metric) for metric in METRICS]


def truth_of(rows: pd.DataFrame) -> np.ndarray:
    """(N, 96, 96)"""
    return np.stack(
        [
            np.zeros((96, 96), bool) if pd.isna(uri) else preprocess_mask(Image.open(uri[7:]), 96)
            for uri in rows["mask_uri"]
        ]
    )


def scored_rows(registered: Registered, collection: str) -> pd.DataFrame:
    """The manifest with scores, by image_id."""
    parts = read_parts(registered.store, *model_folder(collection, registered.model.partition), schema=SCORES)
    rows = read_manifest(registered.store, collection).rows
    return rows.merge(parts.to_pandas()[["image_id", "score"]], on="image_id").sort_values("image_id")


def test_scores_of_another_bundle_under_the_same_number_are_not_evaluated(scored: Registered, tmp_path: Path) -> None:
    """A registry that begins anew beside the scores counts from 1 again."""
    give_to_another_bundle(scored.store, tmp_path.name, scored.model)
    with pytest.raises(InputError, match="are of another model of that name"):
        evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)


def test_intervals_are_those_of_the_seeded_bootstrap(scored: Registered, tmp_path: Path) -> None:
    (bolt, nut, mean), _ = evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
    rows = scored_rows(scored, tmp_path.name)
    rows = rows[rows["class_name"] == "nut"]
    labels = rows["label"].to_numpy(int)
    drawn = bootstrap_image_metrics(labels, rows["score"].to_numpy(), seed=[0, 1])
    expected = {f"image_{metric}": interval(values) for metric, values in drawn.items()}
    maps = maps_of(scored, tmp_path.name, rows["image_id"].tolist())
    drawn = bootstrap_pixel_metrics(labels, truth_of(rows), maps, seed=[0, 1])
    names = {"auroc": "pixel_auroc", "ap": "pixel_ap", "f1_max": "pixel_f1_max", "official": "aupro",
             "standard": "aupro_standard"}  # fmt: skip
    expected |= {names[metric]: interval(values) for metric, values in drawn.items()}
    assert set(nut.intervals) == set(METRICS)
    assert {metric: pytest.approx(ends) for metric, ends in expected.items()} == nut.intervals
    assert (bolt.intervals, mean.intervals) == ({}, nut.intervals)


def test_a_set_without_normal_images_has_pixel_metrics_with_intervals(registered: Registered, tmp_path: Path) -> None:
    """As segmentation sets are: all images have a mask, and image metrics are undefined."""
    store, name = segmented(registered, tmp_path)
    (found, mean), run_id = evaluate_collection.fn(store.uri, name, registered.model)
    assert (set(found.undefined), set(found.intervals)) == (set(IMAGE_METRICS), set(PIXEL_METRICS))
    for metric, (low, high) in found.intervals.items():
        assert low < high, metric
    assert mean.intervals == found.intervals
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert (metrics["aupro_low/part"], metrics["aupro_high"]) == found.intervals["aupro"]
    assert not any(metric.startswith("image_") for metric in metrics)
    compared = compare_runs.fn(store.uri, [run_id, run_id])
    assert [(d.metric, d.value, d.low, d.high) for d in compared.differences] == [(m, 0, 0, 0) for m in PIXEL_METRICS]


def segmented(registered: Registered, tmp_path: Path) -> tuple[Store, str]:
    """A scored collection of six anomalous images with masks, and its name."""
    write_photos(tmp_path / "source", range(6))
    for number in range(6):
        mask_file(tmp_path / f"source/mask-{number}.png", (60, 40), (5 * number, 4, 5 * number + 20, 25))
    lines = [f"{number:03d}.png,1,mask-{number}.png,part" for number in range(6)]
    (tmp_path / "source/labels.csv").write_text("\n".join(["image,label,mask,class", *lines]))
    ingest_source.fn(registered.store.uri, "segmented", str(tmp_path / "source"), "labels", False)
    score(registered.store, registered, "segmented")
    return registered.store, "segmented"


def synthetic_class(name: str, seed: int, labels: list[int], masks: list[str | None]) -> tuple[pd.DataFrame, dict]:
    """Rows and grids (4, 4) of a class whose anomalous images score higher, mostly."""
    rng = np.random.default_rng(seed)
    images = [f"{name}-{number}" for number in range(len(labels))]
    scores = rng.random(len(labels)) + 0.3 * np.array(labels)
    rows = pd.DataFrame({"image_id": images, "class_name": name, "label": labels, "score": scores})
    rows["mask_uri"] = pd.Series(masks, dtype=object)
    return rows, {image: rng.random((4, 4), np.float32) for image in images}


def mask_file(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> str:
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)
    return path.as_uri()


def test_the_interval_of_the_mean_is_narrower_than_those_of_its_classes() -> None:
    classes = [
        evaluate_class(name, *synthetic_class(name, seed, [0, 1] * 15, [None] * 30), CONFIG, [0, seed])
        for seed, name in enumerate(("a", "b", "c", "d"))
    ]
    mean = mean_over_classes(classes)
    assert mean.image_auroc == pytest.approx(np.mean([each.metrics.image_auroc for each in classes]))
    low, high = mean.intervals["image_auroc"]
    assert low < mean.image_auroc < high
    assert high - low < min(np.ptp(each.metrics.intervals["image_auroc"]) for each in classes)


@pytest.mark.parametrize(
    ("labels", "mask", "image_reason", "pixel_reason"),
    [
        ([0, 0, 0], None, "no anomalous image", "no anomalous image"),
        ([1, 1, 1], None, "no normal image", "no masks"),
        ([0, 1, 1], None, None, "no masks"),
        ([1, 1, 0], (0, 0, 640, 640), None, None),
        ([1, 1, 1], (0, 0, 640, 640), "no normal image", "no normal pixel"),
        ([0, 1, 0], (5, 5, 6, 6), None, "no anomalous pixel"),  # vanishes at 32 pixels
    ],
)
def test_undefined_metrics_have_a_reason(
    labels: list[int], mask: tuple[int, int, int, int] | None, image_reason: str | None, pixel_reason: str | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    uri = mask_file(tmp_path / "mask.png", (640, 640), mask) if mask else None
    rows, grids = synthetic_class("part", 0, labels, [uri if label else None for label in labels])
    found = evaluate_class("part", rows, grids, CONFIG, [0, 0]).metrics
    reasons = dict.fromkeys(IMAGE_METRICS, image_reason) | dict.fromkeys(PIXEL_METRICS, pixel_reason)
    assert found.undefined == {metric: reason for metric, reason in reasons.items() if reason}
    assert {metric for metric in METRICS if getattr(found, metric) is None} == set(found.undefined)


def test_only_the_official_aupro_of_constant_maps_is_undefined(tmp_path: Path) -> None:
    rows, grids = synthetic_class("part", 0, [0, 1], [None, mask_file(tmp_path / "mask.png", (32, 32), (4, 4, 12, 12))])
    constant = {image: np.full((4, 4), 0.25, np.float32) for image in grids}
    found = evaluate_class("part", rows, constant, CONFIG, [0, 0]).metrics
    assert found.undefined == {"aupro": "fewer than two FPRs below 0.3"}
    assert found.aupro_standard == pytest.approx(0.15)


def test_a_metric_without_a_value_in_any_class_has_no_mean() -> None:
    classes = [evaluate_class(name, *synthetic_class(name, 0, [0, 1], [None] * 2), CONFIG, [0, 0]) for name in "ab"]
    mean = mean_over_classes(classes)
    assert mean.undefined == dict.fromkeys(PIXEL_METRICS, "undefined in every class")
    assert mean.image_auroc is not None


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranking, "RUN", 1 << 12)
    monkeypatch.setattr(ranking, "FEW", 0)  # one way of counting for both
    monkeypatch.setattr(pixel_intervals, "SAMPLED_IMAGES", 8)
    uri = mask_file(tmp_path / "mask.png", (32, 32), (4, 4, 20, 20))

    def peak(images: int) -> int:
        rows, grids = synthetic_class("part", 0, [0, 1] * (images // 2), [None, uri] * (images // 2))
        return traced_peak(lambda: rank_maps(rows, grids, CONFIG, [0, 0]))

    peak(64)
    assert peak(300) < peak(150) + 200_000  # the maps and masks of the other 150 are 0.75 MB, their histograms 1.6 MB


def test_the_run_holds_parameters_metrics_and_the_dataset(scored: Registered, tmp_path: Path) -> None:
    (_, nut, mean), run_id = evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
    run = MlflowClient().get_run(run_id)
    manifest = read_manifest(scored.store, tmp_path.name)
    expected = {
        "collection": tmp_path.name, "manifest_digest": manifest.digest, "model": scored.model.uri,
        "model_version": "1", "bundle_digest": scored.model.digest, "aupro_definition": "official", "bootstrap_seed": "0",
    }  # fmt: skip
    assert run.data.params.items() >= expected.items()
    assert len(run.data.params["backbone_sha256"]) == 64
    assert run.data.tags["step"] == "evaluate"
    low, high = nut.intervals["image_auroc"]
    expected = {
        "image_auroc": mean.image_auroc, "image_auroc/nut": nut.image_auroc, "image_auroc_low/nut": low,
        "image_auroc_high/nut": high, "aupro/nut": nut.aupro, "aupro_standard/nut": nut.aupro_standard,
    }  # fmt: skip
    assert {name: run.data.metrics[name] for name in expected} == expected
    assert not any(name.endswith("/bolt") for name in run.data.metrics)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == manifest.digest


def test_the_run_holds_tables_figures_and_the_worst_images(scored: Registered, tmp_path: Path) -> None:
    table, run_id = evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path / "artifacts")))
    assert {path.name for path in folder.iterdir()} == {
        "curves.png", "histogram.png", "metrics.json", "pixel_resamples.parquet", "scores.parquet", "worst"
    }  # fmt: skip
    logged = json.loads((folder / "metrics.json").read_text())
    values = dict(zip(logged["columns"], zip(*logged["data"], strict=True), strict=True))
    assert values["class_name"] == ("bolt", "nut", "mean")
    assert values["aupro_official"] == pytest.approx([None, table[1].aupro, table[2].aupro])
    assert "aupro" not in values
    assert values["aupro_standard"] == pytest.approx([None, table[1].aupro_standard, table[2].aupro_standard])
    assert values["image_auroc_low"] == pytest.approx([None] + 2 * [table[1].intervals["image_auroc"][0]])
    assert values["aupro_official_high"] == pytest.approx([None] + 2 * [table[1].intervals["aupro"][1]])
    draws = pd.read_parquet(folder / "pixel_resamples.parquet")
    assert set(draws["class_name"]) == {"nut"}
    assert draws["aupro"].iloc[0] == table[1].aupro
    assert interval(draws["aupro"][1:].to_numpy()) == table[1].intervals["aupro"]
    assert "aupro_official: no anomalous image" in values["undefined"][0]
    rows = scored_rows(scored, tmp_path.name).sort_values("score", kind="stable")
    for kind, expected in (
        ("false_positives", rows[rows["label"] == 0]["image_id"][::-1][:8]),
        ("false_negatives", rows[rows["label"] == 1]["image_id"]),
    ):
        pictures = sorted((folder / "worst" / kind).iterdir())
        assert [path.stem.rpartition("_")[2] for path in pictures] == expected.tolist()
        assert {Image.open(path).size for path in pictures} == {(60 + 4 + 60, 40)}


def test_a_worst_image_that_is_gone_by_now_is_left_out(scored: Registered, tmp_path: Path) -> None:
    (tmp_path / "source/nut/test/hole/010.png").unlink()
    _, run_id = evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
    assert len(mlflow.artifacts.list_artifacts(run_id=run_id, artifact_path="worst/false_negatives")) == 3


def test_a_collection_without_labels_is_refused(registered: Registered, tmp_path: Path) -> None:
    write_photos(tmp_path / "plain", range(2))
    ingest_source.fn(registered.store.uri, "plain", str(tmp_path / "plain"), "flat", False)
    with pytest.raises(InputError, match="has no labels"):
        evaluate_collection.fn(registered.store.uri, "plain", registered.model)


def test_labels_of_another_split_are_named(registered: Registered, tmp_path: Path) -> None:
    write_photos(tmp_path / "val", range(2))
    (tmp_path / "val/labels.csv").write_text("image,label,split\n000.png,0,val\n001.png,1,val\n")
    ingest_source.fn(registered.store.uri, "val", str(tmp_path / "val"), "labels", False)
    with pytest.raises(InputError, match="all labelled images of 'val' are of the split 'val'"):
        evaluate_collection.fn(registered.store.uri, "val", registered.model)


def test_a_collection_that_is_not_scored_is_refused(registered: Registered, tmp_path: Path) -> None:
    write_photos(tmp_path / "new/good", range(2))
    ingest_source.fn(registered.store.uri, "new", str(tmp_path / "new"), "folders", False)
    with pytest.raises(InputError, match="run `anomalyclip score --collection new` first"):
        evaluate_collection.fn(registered.store.uri, "new", registered.model)


@pytest.fixture
def cut(registered: Registered, tmp_path: Path) -> Registered:
    """A scored collection of two classes: two images of the first cannot be read, nor the only one of the second."""
    root = tmp_path / "source"
    for name, numbers in (("good", range(3)), ("bent", range(3, 5))):
        write_photos(root / name, numbers)
    broken = (root / "good/000.png").read_bytes()[:200]
    for name in ("good/cut.png", "bent/cut.png", "washer.png"):
        (root / name).write_bytes(broken)
    images = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = [f"{path},{int('bent' in path.parts)},{path.stem if len(path.parts) == 1 else 'nut'}" for path in images]
    (root / "labels.csv").write_text("\n".join(["image,label,class", *lines]))
    ingest_source.fn(registered.store.uri, tmp_path.name, str(root), "labels", False)
    score(registered.store, registered, tmp_path.name)
    return registered


def test_an_image_that_cannot_be_read_takes_no_part_and_is_counted(cut: Registered, tmp_path: Path) -> None:
    (nut, washer, mean), run_id = evaluate_collection.fn(cut.store.uri, tmp_path.name, cut.model)
    counts = [(row.images, row.anomalous, row.unscored) for row in (nut, washer, mean)]
    assert counts == [(5, 2, 2), (0, 0, 1), (5, 2, 3)]
    assert washer.undefined["image_auroc"] == "no image"
    assert mean.image_auroc == nut.image_auroc is not None
    assert MlflowClient().get_run(run_id).data.params["unscored"] == "3"


def test_images_that_are_not_scored_yet_are_counted_and_refused(cut: Registered, tmp_path: Path) -> None:
    """Whatever else is scored: metrics over a part of the collection would look like those of all of it."""
    write_photos(tmp_path / "source/good", range(8, 10))
    with (tmp_path / "source/labels.csv").open("a") as labels:
        labels.write("\ngood/008.png,0,nut\ngood/009.png,0,nut")
    ingest_source.fn(cut.store.uri, tmp_path.name, str(tmp_path / "source"), "labels", False)
    expected = r"has not scored 2 of the 10 labelled images of .* run `anomalyclip score --collection \S+` first"
    with pytest.raises(InputError, match=expected):
        evaluate_collection.fn(cut.store.uri, tmp_path.name, cut.model)
    score(cut.store, cut, tmp_path.name)
    assert evaluate_collection.fn(cut.store.uri, tmp_path.name, cut.model)[0][-1].images == 7


def test_a_collection_of_which_nothing_can_be_read_is_refused(registered: Registered, tmp_path: Path) -> None:
    (tmp_path / "source/good").mkdir(parents=True)
    (tmp_path / "source/good/note.png").write_text("not an image")
    ingest_source.fn(registered.store.uri, "notes", str(tmp_path / "source"), "folders", False)
    score(registered.store, registered, "notes")
    with pytest.raises(InputError, match="none of the 1 labelled images of 'notes' can be read"):
        evaluate_collection.fn(registered.store.uri, "notes", registered.model)


def test_anomalous_images_without_a_mask_take_part_in_image_metrics_alone(
    registered: Registered, tmp_path: Path
) -> None:
    write_photos(tmp_path / "source", range(6))
    mask = Image.new("L", (60, 40))
    mask.paste(255, (10, 10, 30, 30))
    mask.save(tmp_path / "source/mask.png")
    (tmp_path / "source/labels.csv").write_text(
        "image,label,mask\n000.png,0,\n001.png,0,\n002.png,1,mask.png\n003.png,1,\n004.png,,\n"
    )
    ingest_source.fn(registered.store.uri, "some", str(tmp_path / "source"), "labels", False)
    score(registered.store, registered, "some")
    (found, _), _ = evaluate_collection.fn(registered.store.uri, "some", registered.model)
    rows = read_manifest(registered.store, "some").rows.set_index("uri")
    images = [rows.loc[f"file://{tmp_path}/source/00{n}.png", "image_id"] for n in range(3)]
    maps = maps_of(registered, "some", images)
    truth = np.stack([np.zeros((96, 96), bool)] * 2 + [preprocess_mask(mask, 96)])
    assert (found.images, found.anomalous) == (4, 2)
    assert found.pixel_auroc == pytest.approx(pixel_metrics(truth, maps)["auroc"])


def test_any_class_name_can_be_logged(registered: Registered, tmp_path: Path) -> None:
    names = ["a+b (ü)", "a+b [ü]", "..", "a//b", "/x/", "nut:1", "mean", "$^$", "x" * 300]
    write_photos(tmp_path / "source", range(2 * len(names)))
    lines = [f"{2 * i + label:03d}.png,{label},{name}" for i, name in enumerate(names) for label in (0, 1)]
    (tmp_path / "source/labels.csv").write_text("\n".join(["image,label,class", *lines]), encoding="utf-8")
    ingest_source.fn(registered.store.uri, "odd", str(tmp_path / "source"), "labels", False)
    score(registered.store, registered, "odd")
    table, run_id = evaluate_collection.fn(registered.store.uri, "odd", registered.model)
    assert sorted(row.class_name for row in table[:-1]) == sorted(names)
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert sum(metric.startswith("image_auroc/") for metric in metrics) == len(names)
    assert metrics["image_auroc"] == pytest.approx(np.mean([row.image_auroc for row in table[:-1]]))
    pictures = mlflow.artifacts.list_artifacts(run_id=run_id, artifact_path="worst/false_negatives")
    assert len(pictures) == WORST
    assert all(re.fullmatch(r"\d_0\.\d{3}_[\w-]+_[0-9a-f]{16}\.jpg", Path(item.path).name, re.A) for item in pictures)


def test_a_mask_that_vanished_is_named(scored: Registered, tmp_path: Path) -> None:
    (tmp_path / "source/nut/ground_truth/hole/010_mask.png").unlink()
    with pytest.raises(InputError, match=r"010_mask\.png does not exist any more"):
        evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
