"""Shards on Ray end with the bytes of threads, whatever dies."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import fsspec
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType
from prefect.client.schemas.sorting import ArtifactSort, LogSort

from models import Detector
from models.backbone import load_backbone
from models.prompts import PromptLearner
from tasks.errors import InputError
from tests.flows.conftest import Command, write_images
from tests.flows.test_kill import committed, forget_scores, scoring, written

BAD_STORAGE = '''
import os, signal
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem

class BadFileSystem(LocalFileSystem):
    """Reading `deadly` kills the process, as a decoder with a bug would; reading `busy` fails once."""

    protocol = "bad"

    def cat_file(self, path, start=None, end=None, **kwargs):
        if path.endswith("deadly.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        failed = Path(path).with_suffix(".failed")
        if path.endswith("busy.png") and not failed.exists():
            failed.touch()
            raise OSError("the storage is busy")
        return super().cat_file(path, start, end, **kwargs)
'''
REGISTER = "import fsspec; fsspec.register_implementation('bad', 'bad_storage.BadFileSystem')"
ON_RAY = ("--shard-size", "4", "--runner", "ray", "--workers", "2", "--json")


@pytest.fixture
def collection(anomalyclip: Command, tmp_path: Path) -> dict[str, bytes]:
    """64 images and a model; returns what threads write."""
    write_images(tmp_path / "images", range(64), size=64)
    anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders")
    anomalyclip("train", "--collection", "parts", "--epochs", "1")
    assert anomalyclip("score", "--collection", "parts", "--shard-size", "4").code == 0
    quiet = written(tmp_path / "store")
    forget_scores(tmp_path / "store")
    return quiet


def test_one_of_two_workers_is_killed_and_the_bytes_are_those_of_threads(collection, tmp_path: Path):
    process = scoring(tmp_path, *ON_RAY)
    cluster = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "ray" in "".join(child.cmdline())
    ]
    workers = [child for child in cluster if child.cmdline()[0].startswith("ray::ShardScorer")]
    os.kill(workers[0].pid, signal.SIGKILL)
    assert committed(tmp_path / "store") < 16
    addresses = {c.laddr.ip for p in cluster if p not in workers for c in p.net_connections() if c.status == "LISTEN"}
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"} != set()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "try 1 of 3 failed: its worker died" in err
    assert [json.loads(out)[name] for name in ("scored", "shards", "failed")] == [64, 16, []]
    assert written(tmp_path / "store") == collection
    assert [child for child in cluster if child.is_running()] == []


@pytest.fixture
def bad_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of 24 images: two kill whoever reads them, in the second and fourth shard of 4, and one of the last fails once.

    Workers know the filesystem too.
    """
    (tmp_path / "path").mkdir()
    (tmp_path / "path/bad_storage.py").write_text(BAD_STORAGE)
    (tmp_path / "path/sitecustomize.py").write_text(REGISTER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.syspath_prepend(tmp_path / "path")
    fsspec.register_implementation("bad", "bad_storage.BadFileSystem", clobber=True)
    write_images(tmp_path / "images", range(24), size=64)
    for name, new in {
        "damaged/009": "damaged/009-deadly",
        "good/002": "good/002-deadly",
        "good/000": "good/busy",
    }.items():
        (tmp_path / f"images/{name}.png").rename(tmp_path / f"images/{new}.png")
    return f"bad://{tmp_path}/images"


def test_a_shard_that_kills_every_worker_is_set_aside_and_the_one_that_was_read_beside_it_is_scored(
    anomalyclip: Command, bad_storage: str, tmp_path: Path, monkeypatch, caplog
):
    """An actor has two shards. When it dies both have failed once, and are tried again each alone."""
    monkeypatch.setattr("tasks.ray_runner.TRIES", 2)
    monkeypatch.setattr("tasks.ray_runner.BACKOFF_SECONDS", 0.1)
    anomalyclip("ingest", str(tmp_path / "images"), "--collection", "labelled", "--layout", "folders")
    anomalyclip("train", "--collection", "labelled", "--epochs", "1")
    assert anomalyclip("ingest", bad_storage, "--collection", "parts").code == 0
    answer = anomalyclip("score", "--collection", "parts", "--shard-size", "4", "--runner", "ray", "--json")
    assert (answer.code, len(answer.json["failed"])) == (1, 2)
    assert "2 of 6 shards of 'parts' failed, the others are committed" in answer.err
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "store/collections/parts/runs").glob("*.json")]
    assert (record["scored"], record["already_scored"], record["shards"]) == (16, 0, 4)
    assert {failed["name"][-5:] for failed in record["failed"]} == {"00001", "00003"}
    assert {failed["reason"] for failed in record["failed"]} == {"set aside after 2 tries: its worker died"}
    assert f"The first failure: {record['failed'][0]['name']}: set aside after 2 tries: its worker died" in answer.err
    for beside in ("00000", "00002"):
        assert f"{beside}: try 1 of 2 failed: its worker died" in caplog.text
    assert "try 1 of 2 failed: OSError: the storage is busy" in caplog.text
    assert "in cat_file" in caplog.text  # the worker's own log, with its traceback
    assert committed(tmp_path / "store") == 4
    said, shown = told_by_prefect(f"{record['failed'][-1]['name']} is set aside")
    assert f"{beside}: try 1 of 2 failed: its worker died" in said
    assert "in cat_file" in said
    assert shown == pytest.approx(100 * 16 / 24)


def told_by_prefect(last: str) -> tuple[str, float]:
    """The newest lines of the runs' logs once this one is among them, and where the newest bar of progress stands."""
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while last not in (
            said := "\n".join(line.message for line in client.read_logs(None, 50, 0, LogSort.TIMESTAMP_DESC))
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        bars = ArtifactFilter(type=ArtifactFilterType(any_=["progress"]))
        (bar,) = client.read_artifacts(artifact_filter=bars, sort=ArtifactSort.CREATED_DESC, limit=1)
    return said, float(bar.data)


def test_input_that_no_other_try_would_help_ends_the_run_in_one_sentence(anomalyclip: Command, tmp_path: Path, caplog):
    write_images(tmp_path / "images", range(4), size=64)
    anomalyclip("ingest", "images", "--collection", "parts")
    backbone = load_backbone("embedded", 96)
    bundle = Detector.build(backbone, PromptLearner(backbone), 96, (4,), 2).save(tmp_path / "bundle")
    config = bundle / "config.json"
    config.write_text(config.read_text().replace('"embedded"', '"ViT-B-32:/nowhere.safetensors"'))
    answer = anomalyclip("score", "--collection", "parts", "--model", str(bundle), "--runner", "ray")
    assert answer.code == 2
    assert "/nowhere.safetensors" in answer.err.splitlines()[-1]
    assert "try 1" not in caplog.text
    answer = anomalyclip(
        "score", "--collection", "parts", "--model", str(bundle), "--runner", "ray", "--worker-gpus", "999"
    )
    assert (answer.code, answer.err.splitlines()[-1][:44]) == (2, "anomalyclip: a worker asks for 999 GPUs, thi")


@pytest.mark.parametrize(("cpus", "gpus", "asked"), [(math.nan, None, "nan cores"), (1.0, -1.0, "-1 GPUs")])
def test_a_share_that_no_worker_can_have_is_refused(cpus: float, gpus: float | None, asked: str):
    from tasks.ray_runner import score_on_ray

    with pytest.raises(InputError, match=f"a worker cannot ask for {asked}"):
        score_on_ray({}, [], 1, cpus, gpus)


def test_without_ray_the_extra_is_named(anomalyclip: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tasks.ray_runner", raising=False)
    answer = anomalyclip("score", "--collection", "parts", "--runner", "ray")
    assert answer.code == 2
    assert "pip install '.[ray]'" in answer.err
