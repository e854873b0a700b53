"""The command line: the story of a collection, exit codes, --json and --help."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flows.cli import silence_input_errors
from flows.commands import as_table
from tasks.errors import InputError
from tasks.manifest import ingest_source
from tasks.registry import ModelVersion, resolve_model
from tasks.store import Store
from tests.flows.conftest import Command, start, write_images

COMMANDS = [
    "demo",
    "ingest",
    "train",
    "import-checkpoint",
    "score",
    "evaluate",
    "report",
    "export",
    "calibrate",
    "nightly",
    "reproduce",
    "compare",
    "promote",
    "rollback",
]


def test_a_collection_goes_from_folder_to_scores_masks_and_metrics(anomalyclip: Command, images: Path, tmp_path: Path):
    listed = anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders", "--json").json
    assert (listed["listed"], listed["new"], listed["labelled"]) == (24, 24, 24)

    trained = anomalyclip("train", "--collection", "parts", "--epochs", "1", "--json").json
    assert trained["model"] == "models:/anomalyclip/1"
    early = anomalyclip("report", "--collection", "parts")
    assert (early.code, early.out) == (2, "")
    assert "models:/anomalyclip/1 has scored nothing of 'parts': run `anomalyclip score`" in early.err

    scored = anomalyclip("score", "--collection", "parts", "--json").json
    assert (scored["scored"], scored["already_scored"], scored["unreadable"]) == (24, 0, {})
    assert list((tmp_path / "store/collections/parts/scores/model=anomalyclip.v1").glob("part-*.parquet"))

    again = anomalyclip("score", "--collection", "parts")
    assert again.code == 0
    assert "nothing to score" in again.out

    write_images(images, range(24, 27))
    more = anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders", "--json").json
    assert (more["new"], more["unchanged"]) == (3, 24)
    refused = anomalyclip("evaluate", "--collection", "parts")
    assert (refused.code, refused.out) == (2, "")
    assert "has not scored 3 of the 27 labelled images of 'parts': run `anomalyclip score" in refused.err
    assert anomalyclip("score", "--collection", "parts", "--json").json["scored"] == 3

    evaluated = anomalyclip("evaluate", "--collection", "parts", "--json").json
    assert (evaluated["metrics"][-1]["images"], evaluated["unscored"]) == (27, 0)
    assert 0 <= evaluated["metrics"][-1]["image_auroc"] <= 1
    assert evaluated["metrics"][0]["pixel_auroc"] is None
    assert evaluated["metrics"][0]["undefined"]["pixel_auroc"] == "no masks"
    low, high = evaluated["metrics"][0]["intervals"]["image_auroc"]
    table = anomalyclip("evaluate", "--collection", "parts").out
    assert f"{evaluated['metrics'][0]['image_auroc']:.3f} [{low:.3f}, {high:.3f}]" in table
    assert "– no masks: pixel AUROC, pixel AP, pixel F1-max, AUPRO (official), AUPRO (standard) of parts\n" in table

    page = anomalyclip("report", "--collection", "parts", "--json").json["report"]
    assert Path(page.removeprefix("file://")).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_bad_image_is_a_row_and_the_run_goes_on(anomalyclip: Command, images: Path):
    (images / "good" / "note.png").write_text("not an image")
    (images / "good" / "empty.jpg").touch()
    anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders")
    anomalyclip("train", "--collection", "parts", "--epochs", "1")
    answer = anomalyclip("score", "--collection", "parts", "--json")
    assert answer.code == 0
    assert answer.json["unreadable"] == {"empty": 1, "unsupported": 1}
    assert answer.json["scored"] == 26
    assert anomalyclip("evaluate", "--collection", "parts", "--json").json["unscored"] == 2
    lines = anomalyclip("evaluate", "--collection", "parts").out.splitlines()
    assert "– unscored, because they cannot be read: 2 of 26 labelled images (parts 2)" in lines


def test_what_is_scored_is_the_snapshot_that_is_recorded_whatever_is_ingested_meanwhile(
    anomalyclip: Command, images: Path, monkeypatch: pytest.MonkeyPatch
):
    digest = anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders", "--json").json["digest"]
    anomalyclip("train", "--collection", "parts", "--epochs", "1")

    def resolve_while_others_ingest(store: Store, model: str) -> ModelVersion:
        write_images(images, range(24, 28))
        ingest_source.fn(store.uri, "parts", str(images), "folders", False)
        return resolve_model(store, model)

    monkeypatch.setattr("flows.score.resolve_model", resolve_while_others_ingest)
    first = anomalyclip("score", "--collection", "parts", "--json").json
    assert (first["images"], first["scored"], first["manifest_digest"]) == (24, 24, digest)
    second = anomalyclip("score", "--collection", "parts", "--json").json
    assert (second["images"], second["scored"]) == (28, 4)


def test_json_is_the_only_thing_on_standard_output(tmp_path: Path, images: Path):
    process = start("ingest", str(images), "--collection", "parts", "--json", cwd=tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["listed"] == 24


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ingest", "nowhere", "--collection", "parts"], "/nowhere' does not exist"),
        (["ingest", ".", "--collection", "parts"], "holds no image"),
        (["ingest", ".", "--collection", "../parts"], "is no name for a collection"),
        (["ingest", ".", "--collection", "parts", "--layout", "magic"], "invalid choice: 'magic'"),
        (["score", "--collection", "parts"], "there is no collection 'parts'"),
        (["train", "--collection", "parts"], "there is no collection 'parts'"),
        (["report", "--collection", "parts"], "there is no collection 'parts'"),
        (["score", "--collection", "parts", "--workers", "0"], "invalid positive value: '0'"),
        (["score", "--collection", "parts", "--store", "/dev/null"], "nothing can be written to the store /dev/null"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(anomalyclip: Command, arguments: list[str], sentence: str):
    answer = anomalyclip(*arguments)
    assert answer.code == 2
    assert sentence in answer.err
    assert "Traceback" not in answer.err


def test_a_place_where_prefect_cannot_have_its_folder_is_wrong_use(tmp_path: Path):
    process = start("ingest", ".", "--collection", "parts", cwd=tmp_path, PREFECT_HOME="/dev/null/prefect")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == "anomalyclip: Prefect's folder /dev/null/prefect cannot be made: Not a directory\n"


def test_training_names_its_map_its_images_and_its_epochs(anomalyclip: Command, images: Path, tmp_path: Path):
    anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders")
    assert anomalyclip("train", "--collection", "parts", "--map", "multi-layer", "--feature-layers", "4").code == 2
    line = anomalyclip("train", "--collection", "parts", "--epochs", "2", "--map", "multi-layer").out
    assert line.startswith("models:/anomalyclip/1: 2 epochs on 24 images of parts, loss ")
    assert line.endswith("map: multi-layer\n")
    (config,) = (tmp_path / "store/mlartifacts").rglob("config.json")
    facts = json.loads(config.read_text())
    assert (facts["feature_layers"], facts["training"]["map"]) == ([1, 2, 3, 4], "multi-layer")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr", "-1"], ["--lr", "nan"], ["--seed", "-5"], ["--epochs", "0"], ["--patience", "-1"],
        ["--validation-share", "-0.5"], ["--patience", "2"], ["--feature-layers", "9"], ["--dpam-layers", "77"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_training_refuses_wrong_numbers_before_it_computes_anything(
    anomalyclip: Command, images: Path, tmp_path: Path, arguments: list[str]
):
    anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders")
    answer = anomalyclip("train", "--collection", "parts", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err
    assert not (tmp_path / "store/cache").exists()
    assert not (tmp_path / "store/mlflow.db").exists()


def test_training_and_evaluation_refuse_a_collection_without_labels(anomalyclip: Command, images: Path):
    anomalyclip("ingest", str(images), "--collection", "labelled", "--layout", "folders")
    anomalyclip("train", "--collection", "labelled", "--epochs", "1")
    anomalyclip("ingest", str(images), "--collection", "parts")
    for command in ("train", "evaluate"):
        answer = anomalyclip(command, "--collection", "parts")
        assert answer.code == 2
        assert "label" in answer.err


def test_a_mask_of_another_size_than_its_image_is_refused(anomalyclip: Command, tmp_path: Path):
    folder = tmp_path / "labelled"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "image.png")
    Image.new("L", (30, 40)).save(folder / "mask.png")
    (folder / "labels.csv").write_text("image,label,mask\nimage.png,1,mask.png\n")
    answer = anomalyclip("ingest", str(folder), "--collection", "parts", "--layout", "labels")
    assert answer.code == 2
    assert "mask.png is 30 x 40 pixels" in answer.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, anomalyclip: Command):
    answer = anomalyclip(command, "--help")
    assert answer.code == 0
    assert f"anomalyclip {command}" in answer.out.partition("example:")[2]
    assert "--json" in answer.out


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys; from flows.arguments import build_parser; build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("level", "traced"), [("ERROR", False), ("DEBUG", True)])
def test_prefect_says_a_failure_in_a_line_and_its_traceback_where_it_is_asked_for(
    level: str, traced: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", level)
    logger = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logging.getLogger("prefect.flow_runs"), "filters", [])
    silence_input_errors()

    def logged(error: Exception) -> logging.LogRecord | None:
        told = f"Task run failed with exception: {error!r}"
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, told, (), (type(error), error, None))
        return record if logger.filter(record) else None

    assert logged(InputError("there is no model")) is None
    record = logged(OSError("no space left"))
    assert record
    assert bool(record.exc_info) is traced


def test_names_of_folders_cannot_steer_a_terminal() -> None:
    assert as_table([{"name": "a\x1b[2Jb\nc"}], {"name": "class"}).splitlines() == ["class   ", "a\ufffd[2Jb\ufffdc"]
