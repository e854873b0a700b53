"""Baselines from the command line: scored once, evaluated like a model, beside the registry and not in it."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from models.backbone import load_backbone
from models.baselines import PROMPTS, Baseline, baseline_config
from models.embedded import IMAGE_SIZE
from tests.flows.conftest import Command
from tests.flows.test_reproduce import photograph


@pytest.fixture
def parts(anomalyclip: Command, tmp_path: Path) -> Path:
    """A collection of two classes with masks, in turns, and a file that is no image; the folder of its results."""
    records = []
    for i in range(4):
        files = [f"images/{i}-good.png", f"images/{i}-hole.png", f"masks/{i}.png"]
        photograph(i, *(tmp_path / "source" / file for file in files))
        name = ("metal_nut", "tile")[i // 2]
        records += [{"image": files[0], "label": 0, "class": name}]
        records += [{"image": files[1], "label": 1, "class": name, "mask": files[2]}]
    (tmp_path / "source/images/0-note.png").write_text("not an image")
    records.append({"image": "images/0-note.png", "label": 0, "class": "tile"})
    (tmp_path / "source/labels.json").write_text(json.dumps(records))
    assert anomalyclip("ingest", "source", "--collection", "parts", "--layout", "labels").code == 0
    return tmp_path / "store/collections/parts"


def read_rows(parts: Path, kind: str, name: str) -> list[dict]:
    (part,) = parts.glob(f"{kind}/model={name}.v*/part-*.parquet")
    return pq.read_table(part).to_pylist()


def check_rows(parts: Path, name: str) -> None:
    """Scores and patch grids are those of the detector of the row's class."""
    grids = {row["image_id"]: np.frombuffer(row["values"], "<f4") for row in read_rows(parts, "maps", name)}
    backbone = load_backbone("embedded")
    baseline = Baseline(baseline_config(name, backbone), backbone, device="cpu")
    rows = read_rows(parts, "scores", name)
    assert [row["error_kind"] for row in rows].count(None) == len(grids) == 8
    for row in rows:
        if row["error_kind"] is None:
            detector = baseline.for_class(row["class_name"])
            image = detector.preprocess(Image.open(row["uri"].removeprefix("file://")))
            score, grid = detector.score_grids(image[None])
            assert row["score"] == pytest.approx(float(score), abs=1e-5)
            np.testing.assert_allclose(grids[row["image_id"]], grid.flatten(), atol=1e-5)


def test_baselines_are_scored_once_and_evaluated_like_a_model(anomalyclip: Command, parts: Path) -> None:
    for name in PROMPTS:
        done = anomalyclip("evaluate", "--collection", "parts", "--baseline", name, "--json").json
        assert done["model"].startswith(f"baselines:/{name}/")
        assert [(row["class_name"], row["images"]) for row in done["metrics"][:2]] == [("metal_nut", 4), ("tile", 4)]
        assert all(0 <= done["metrics"][-1][metric] <= 1 for metric in ("image_auroc", "pixel_auroc", "aupro"))
        check_rows(parts, name)
    assert MlflowClient().get_run(done["mlflow_run"]).data.params["model"] == done["model"]
    assert MlflowClient().search_registered_models() == []

    written = {path: path.stat().st_mtime_ns for path in parts.glob("scores/*/*")}
    again = anomalyclip("evaluate", "--collection", "parts", "--baseline", name, "--json").json
    assert again["metrics"] == done["metrics"]
    assert {path: path.stat().st_mtime_ns for path in parts.glob("scores/*/*")} == written
    assert anomalyclip("score", "--collection", "parts", "--model", done["model"], "--json").json["scored"] == 0


def test_the_backbone_is_the_champions_and_another_one_is_scored_beside_it(anomalyclip: Command, parts: Path) -> None:
    anomalyclip("train", "--collection", "parts", "--epochs", "1", "--image-size", "96")
    models = set()
    for options, side in ((), 96 // 16), (("--backbone", "embedded"), IMAGE_SIZE // 16):
        done = anomalyclip("evaluate", "--collection", "parts", "--baseline", "clip", *options, "--json").json
        models.add(done["model"])
        partition = done["model"].removeprefix("baselines:/").replace("/", ".v")
        (maps,) = (parts / f"maps/model={partition}").iterdir()
        assert set(pq.read_table(maps)["rows"].to_pylist()) == {side}
    assert len(models) == 2
    assert MlflowClient().get_model_version_by_alias("anomalyclip", "champion").version == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "--baseline", "coop"], "invalid choice: 'coop'"),
        (["evaluate", "--baseline", "clip", "--model", "models:/anomalyclip/1"], "not allowed with argument"),
        (["evaluate", "--baseline", "clip", "--backbone", "ViT-X:openai"], "knows no model 'ViT-X'"),
        (["evaluate", "--backbone", "embedded"], "a model has its own"),
        (["score", "--model", "baselines:/clip/0123"], "there is no baselines:/clip/0123"),
    ],
)
def test_what_no_baseline_can_be_made_of_is_said(
    anomalyclip: Command, parts: Path, arguments: list[str], sentence: str
) -> None:
    answer = anomalyclip(*arguments, "--collection", "parts")
    assert answer.code == 2
    assert sentence in answer.err


def test_a_baseline_scores_nothing_where_no_label_is(anomalyclip: Command, parts: Path) -> None:
    anomalyclip("ingest", "source/images", "--collection", "unlabelled")
    answer = anomalyclip("evaluate", "--collection", "unlabelled", "--baseline", "clip")
    assert answer.code == 2
    assert "has no labels" in answer.err
    assert not (parts.parent / "unlabelled/scores").exists()
