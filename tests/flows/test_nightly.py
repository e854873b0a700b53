"""Nights: what is new is scored by the champion, told once, and what went wrong is in the state that the run ends in."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.artifacts import Artifact

from flows.nightly import score_pending
from flows.score import score
from tasks.registry import (
    CHAMPION,
    CHAMPION_URI,
    MODEL_NAME,
    bundle_folder,
    register_bundle,
    resolve_model,
    tracked_run,
    use_tracking,
)
from tasks.scoring import score_shard
from tasks.store import Store
from tasks.tables import SCORES, read_parts
from tests.flows.conftest import Answer, Command, write_images


@pytest.fixture
def model(anomalyclip: Command, images: Path) -> None:
    anomalyclip("ingest", str(images), "--collection", "auxiliary", "--layout", "folders")
    anomalyclip("train", "--collection", "auxiliary", "--epochs", "1")


def night(anomalyclip: Command, source: Path) -> Answer:
    return anomalyclip("nightly", str(source), "--collection", "parts", "--json")


def read_scores(store: Path, version: int) -> list[dict[str, Any]]:
    return read_parts(
        Store(str(store)), "collections/parts/scores", f"model=anomalyclip.v{version}", schema=SCORES
    ).to_pylist()


def write_noise(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (96, 96, 3), np.uint8)).save(folder / f"noise-{number:03d}.png")


def test_night_after_night(anomalyclip: Command, model: None, images: Path, tmp_path: Path):
    first = night(anomalyclip, images).json
    assert (first["state"], first["model"], first["images"]) == ("Completed", "models:/anomalyclip/1", 24)
    assert (first["scored"], first["anomalous"], first["undecided"]) == (24, 0, 24)
    assert "run `anomalyclip calibrate`" in first["message"]
    assert json.loads((tmp_path / f"store/collections/parts/runs/{first['run_id']}.json").read_text())["scored"] == 24

    calibrated = anomalyclip(
        "calibrate", "--collection", "parts", "--false-alarm-rate", "0.25", "--nights", "1", "--json"
    )
    assert (calibrated.json["nights"], calibrated.json["classes"]["parts"]["images"]) == (1, 24)
    quiet = night(anomalyclip, images).json
    assert (quiet["state"], quiet["message"], quiet["images"]) == ("Completed", "no new images", 0)
    assert Path(quiet["report"].removeprefix("file://")).is_file()

    write_images(images, range(24, 36))
    (images / "good" / "torn.png").write_bytes((images / "good" / "000.png").read_bytes()[:200])
    answer = night(anomalyclip, images)
    second = answer.json
    assert (answer.code, second["state"]) == (0, "Completed with unreadable images")
    assert (second["images"], second["scored"], second["undecided"]) == (13, 12, 0)
    assert second["unreadable"] == {"corrupt": 1}
    rows = read_scores(tmp_path / "store", 1)[24:]
    assert second["anomalous"] == sum(row["decision"] == "anomalous" for row in rows)
    page = Path(second["report"].removeprefix("file://")).read_text(encoding="utf-8")
    assert "torn.png" in page
    assert "030.png" in page
    assert "001.png" not in page  # it was told of before

    anomalyclip("train", "--collection", "auxiliary", "--epochs", "1", "--seed", "5")
    use_tracking(Store(str(tmp_path / "store"))).set_registered_model_alias(MODEL_NAME, CHAMPION, "2")
    write_images(images, range(36, 38))
    third = night(anomalyclip, images).json
    assert (third["model"], third["images"]) == ("models:/anomalyclip/2", 39)
    assert len(read_scores(tmp_path / "store", 1)) == 37
    assert len({row["bundle_digest"] for row in read_scores(tmp_path / "store", 2)}) == 1

    table = anomalyclip("nightly", str(images), "--collection", "parts")
    assert table.out.splitlines()[-2].startswith("Completed: no new images (models:/anomalyclip/2")


def test_a_night_whose_scores_have_moved_is_flagged(anomalyclip: Command, model: None, tmp_path: Path):
    source = tmp_path / "line"
    write_images(source, range(60))
    night(anomalyclip, source)
    anomalyclip("calibrate", "--collection", "parts", "--false-alarm-rate", "0.1")
    write_images(source, range(60, 100))
    ordinary = night(anomalyclip, source).json
    assert (ordinary["moved"], ordinary["classes"][0]["drift"]["images"]) == ([], 40)
    assert 'role="alert"' not in Path(ordinary["report"].removeprefix("file://")).read_text(encoding="utf-8")

    write_noise(source, 40)
    shifted = night(anomalyclip, source).json
    assert shifted["moved"] == ["parts"]
    assert "the scores of parts have moved" in shifted["message"]
    page = Path(shifted["report"].removeprefix("file://")).read_text(encoding="utf-8")
    assert 'role="alert">The scores of parts have moved against the reference' in page


def test_a_night_with_a_shard_that_failed_says_so_and_the_next_one_tells_all(
    anomalyclip: Command, model: None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    night(anomalyclip, images)
    maps = tmp_path / "store/collections/parts/maps"
    maps.rename(tmp_path / "maps")
    maps.touch()  # a file where a folder is needed: nothing can be written
    monkeypatch.setattr(score_shard, "retries", 0)
    write_images(images, range(24, 30))
    answer = night(anomalyclip, images)
    assert (answer.code, answer.json["state"]) == (1, "Failed")
    assert "1 of 1 shards of 'parts' failed" in answer.json["failed"]
    assert answer.json["images"] == 0
    assert last_table("score-parts") | {"seconds": 0} == {
        "collection": "parts", "images": 30, "scored": 0, "already_scored": 24, "anomalous": "–", "unreadable": 0,
        "failed shards": 1, "seconds": 0,
    }  # fmt: skip
    again = anomalyclip("score", "--collection", "parts", "--json")
    assert (again.code, len(again.json["failed"])) == (1, 1)
    assert again.err.splitlines()[-1].startswith("anomalyclip: 1 of 1 shards of 'parts' failed")

    maps.unlink()
    (tmp_path / "maps").rename(maps)
    assert night(anomalyclip, images).json["images"] == 6


def last_table(key: str) -> dict[str, Any]:
    """The last row of an artifact, as the UI has it."""
    found: Any = Artifact.get(key)
    return dict(json.loads(found.data)[-1])


def test_a_night_whose_weights_are_refused_has_failed_and_is_told_of(
    anomalyclip: Command, model: None, images: Path, tmp_path: Path
):
    store = Store(str(tmp_path / "store"))
    night(anomalyclip, images)
    with bundle_folder(store, resolve_model(store, CHAMPION_URI)) as folder:
        shutil.copytree(folder, tmp_path / "other")
    config = tmp_path / "other/config.json"
    facts = json.loads(config.read_text())
    config.chmod(0o644)
    config.write_text(json.dumps(facts | {"weights_sha256": "0" * 64}))
    with tracked_run(store, "train", {}) as run_id:
        register_bundle(store, tmp_path / "other", run_id, "on other weights")
    use_tracking(store).set_registered_model_alias(MODEL_NAME, CHAMPION, "2")
    answer = night(anomalyclip, images)
    told = answer.json
    assert (answer.code, told["state"], told["model"], told["images"]) == (1, "Failed", "models:/anomalyclip/2", 0)
    assert "made on other weights" in told["failed"]
    assert "made on other weights" in Path(told["report"].removeprefix("file://")).read_text(encoding="utf-8")
    assert json.loads(store.read("collections/parts/runs", f"{told['run_id']}.json"))["failed"] == told["failed"]
    assert last_table("nightly-parts")["images"] == 0

    use_tracking(store).set_registered_model_alias(MODEL_NAME, CHAMPION, "1")
    write_images(images, range(24, 26))
    assert night(anomalyclip, images).json["images"] == 2


@pytest.mark.parametrize(
    "command",
    [
        ["score", "--collection", "parts"],
        ["score", "--collection", "parts", "--runner", "ray"],
        ["nightly", "images", "--collection", "parts"],
    ],
    ids=["score", "ray", "nightly"],
)
def test_another_precision_than_that_of_the_scores_is_wrong_use(
    anomalyclip: Command, model: None, images: Path, tmp_path: Path, command: list[str]
):
    assert night(anomalyclip, images).code == 0
    before = read_scores(tmp_path / "store", 1)
    write_images(images, range(24, 26))
    answer = anomalyclip(*command, "--precision", "bf16")
    assert (answer.code, answer.out) == (2, "")
    assert "has scored 'parts' in fp32, its scores in bf16 would mix" in answer.err.splitlines()[-1]
    assert read_scores(tmp_path / "store", 1) == before


def test_a_night_without_a_model_is_wrong_use(anomalyclip: Command, images: Path):
    answer = night(anomalyclip, images)
    assert answer.code == 2
    assert "train one with `anomalyclip train`" in answer.err


def test_an_error_without_words_has_failed_a_night_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a time-out of fsspec."""

    def time_out(**_: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(score, "fn", time_out)
    assert score_pending() == "TimeoutError"
