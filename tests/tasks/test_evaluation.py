"""Metrics of the stored maps are those of models.metrics; undefined ones are absent."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from models.maps import upsample
from models.metrics import aupro, image_metrics, pixel_metrics
from models.preprocess import preprocess_mask
from tasks.errors import InputError
from tasks.evaluation import evaluate_collection, read_grids
from tasks.manifest import ingest_source, read_manifest
from tasks.scoring import plan_shards, score_shard, scores_folder
from tasks.store import Store
from tasks.tables import SCORES, read_parts
from tests.tasks.conftest import Registered, write_photos


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


def test_metrics_are_those_of_the_stored_scores_and_maps(scored: Registered, tmp_path: Path) -> None:
    store, collection = scored.store, tmp_path.name
    table, _ = evaluate_collection.fn(store.uri, collection, scored.model)
    bolt, nut, mean = table
    parts = read_parts(store, *scores_folder(collection, scored.model.partition), schema=SCORES)
    rows = read_manifest(store, collection).rows.merge(parts.to_pandas()[["image_id", "score"]], on="image_id")
    rows = rows[rows["class_name"] == "nut"]
    image = image_metrics(rows["label"].to_numpy(int), rows["score"].to_numpy())
    grids = read_grids(store, collection, scored.model, rows["image_id"])
    maps = upsample(torch.from_numpy(np.stack([grids[i] for i in rows["image_id"]])), 96, 4.0).numpy()
    truth = [
        np.zeros((96, 96), bool) if uri is None or uri != uri else preprocess_mask(Image.open(uri[7:]), 96)
        for uri in rows["mask_uri"]
    ]
    pixel = pixel_metrics(np.stack(truth), maps)
    assert (nut.images, nut.anomalous) == (10, 4)
    assert (nut.image_auroc, nut.image_ap, nut.image_f1_max) == pytest.approx(tuple(image.values()))
    assert (nut.pixel_auroc, nut.pixel_ap, nut.pixel_f1_max) == pytest.approx(tuple(pixel.values()))
    assert nut.aupro == pytest.approx(aupro(np.stack(truth), maps))
    assert (bolt.image_auroc, bolt.pixel_auroc, bolt.aupro) == (None, None, None)
    assert mean.image_auroc == nut.image_auroc


def test_the_run_holds_parameters_metrics_dataset_and_figures(scored: Registered, tmp_path: Path) -> None:
    _, run_id = evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
    run = MlflowClient().get_run(run_id)
    assert run.data.params["bundle_digest"] == scored.model.digest
    assert run.data.params["aupro_definition"] == "official"
    assert {"image_auroc", "image_auroc/nut", "aupro/nut"} <= set(run.data.metrics)
    assert "image_auroc/bolt" not in run.data.metrics
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == read_manifest(scored.store, tmp_path.name).digest
    files = {item.path for item in mlflow.artifacts.list_artifacts(run_id=run_id)}
    assert {"curves.png", "histogram.png", "metrics.json", "scores.parquet"} <= files


def test_a_collection_without_labels_is_refused(registered: Registered, tmp_path: Path) -> None:
    write_photos(tmp_path / "plain", range(2))
    ingest_source.fn(registered.store.uri, "plain", str(tmp_path / "plain"), "flat", False)
    with pytest.raises(InputError, match="has no labels"):
        evaluate_collection.fn(registered.store.uri, "plain", registered.model)


def test_a_collection_that_is_not_scored_is_refused(registered: Registered, tmp_path: Path) -> None:
    write_photos(tmp_path / "new/good", range(2))
    ingest_source.fn(registered.store.uri, "new", str(tmp_path / "new"), "folders", False)
    with pytest.raises(InputError, match="run `anomalyclip score --collection new` first"):
        evaluate_collection.fn(registered.store.uri, "new", registered.model)


def test_grids_are_read_for_the_images_that_are_asked_for(scored: Registered, tmp_path: Path) -> None:
    rows = read_manifest(scored.store, tmp_path.name).rows
    wanted = rows["image_id"].iloc[:2].tolist()
    grids = read_grids(scored.store, tmp_path.name, scored.model, wanted)
    assert sorted(grids) == sorted(wanted)
    assert {grid.shape for grid in grids.values()} == {(6, 6)}


def test_an_image_without_a_score_takes_no_part(registered: Registered, tmp_path: Path) -> None:
    write_photos(tmp_path / "source/good", range(3))
    write_photos(tmp_path / "source/bent", range(3, 5))
    (tmp_path / "source/good/cut.png").write_bytes((tmp_path / "source/good/000.png").read_bytes()[:200])
    ingest_source.fn(registered.store.uri, "cut", str(tmp_path / "source"), "folders", False)
    score(registered.store, registered, "cut")
    write_photos(tmp_path / "source/good", range(8, 10))  # listed, and not scored yet
    ingest_source.fn(registered.store.uri, "cut", str(tmp_path / "source"), "folders", False)
    table, _ = evaluate_collection.fn(registered.store.uri, "cut", registered.model)
    assert (table[0].images, table[0].anomalous) == (5, 2)


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
    grids = read_grids(registered.store, "some", registered.model, images)
    maps = upsample(torch.from_numpy(np.stack([grids[image] for image in images])), 96, 4.0).numpy()
    truth = np.stack([np.zeros((96, 96), bool)] * 2 + [preprocess_mask(mask, 96)])
    assert (found.images, found.anomalous) == (4, 2)
    assert found.pixel_auroc == pytest.approx(pixel_metrics(truth, maps)["auroc"])


def test_any_class_name_can_be_logged(registered: Registered, tmp_path: Path) -> None:
    names = ["a+b (ü)", "..", "a//b", "/x/", "nut:1", "mean"]
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


def test_a_mask_that_vanished_is_named(scored: Registered, tmp_path: Path) -> None:
    (tmp_path / "source/nut/ground_truth/hole/010_mask.png").unlink()
    with pytest.raises(InputError, match=r"010_mask\.png does not exist any more"):
        evaluate_collection.fn(scored.store.uri, tmp_path.name, scored.model)
