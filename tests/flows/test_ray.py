"""Shards on Ray end with the bytes of threads, whatever dies."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.flows.conftest import Command, start, write_images
from tests.flows.test_kill import forget_scores, written

DEADLY = '''
import os, signal
from fsspec.implementations.local import LocalFileSystem

class DeadlyFileSystem(LocalFileSystem):
    """Reading an object of the name `deadly` kills the process, as a decoder with a bug would."""

    protocol = "deadly"

    def cat_file(self, path, start=None, end=None, **kwargs):
        if path.endswith("deadly.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().cat_file(path, start, end, **kwargs)
'''
REGISTER = "import fsspec; fsspec.register_implementation('deadly', 'deadly.DeadlyFileSystem')"


@pytest.fixture
def collection(anomalyclip: Command, tmp_path: Path) -> dict[str, bytes]:
    """48 images and a model; returns what threads write."""
    write_images(tmp_path / "images", range(48), size=64)
    anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders")
    anomalyclip("train", "--collection", "parts", "--epochs", "1")
    assert anomalyclip("score", "--collection", "parts", "--shard-size", "4").code == 0
    quiet = written(tmp_path / "store")
    forget_scores(tmp_path / "store")
    return quiet


def children(pid: int) -> Iterator[tuple[int, str]]:
    """Process id and command line of all processes below one."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
        if parent == pid:
            yield int(path.parent.name), command
            yield from children(int(path.parent.name))


def test_ray_writes_the_bytes_of_threads_and_leaves_no_process(anomalyclip: Command, collection, tmp_path: Path):
    before = {pid for pid, _ in children(os.getpid())}
    arguments = ("score", "--collection", "parts", "--shard-size", "4", "--runner", "ray", "--workers", "2", "--json")
    answer = anomalyclip(*arguments)
    assert answer.code == 0, answer.err
    assert (answer.json["scored"], answer.json["shards"], answer.json["failed"]) == (48, 12, [])
    assert written(tmp_path / "store") == collection
    assert anomalyclip(*arguments).json["scored"] == 0
    assert [command for pid, command in children(os.getpid()) if pid not in before and "ray" in command] == []


def test_a_worker_that_is_killed_is_replaced(collection, tmp_path: Path):
    process = start("score", "--collection", "parts", "--shard-size", "4", "--runner", "ray", "--json", cwd=tmp_path)
    parts = tmp_path / "store/collections/parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("scores/*/part-*.parquet")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (worker,) = [pid for pid, command in children(process.pid) if command.startswith("ray::ShardScorer")]
    os.kill(worker, signal.SIGKILL)
    assert len(list(parts.glob("scores/*/part-*.parquet"))) < 12
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["scored"] == 48
    assert written(tmp_path / "store") == collection


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of images of which one, in the first shard, kills whoever reads it; workers know the filesystem too."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/deadly.py").write_text(DEADLY)
    (tmp_path / "path/sitecustomize.py").write_text(REGISTER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.syspath_prepend(tmp_path / "path")
    fsspec.register_implementation("deadly", "deadly.DeadlyFileSystem", clobber=True)
    write_images(tmp_path / "images", range(24), size=64)
    (tmp_path / "images/damaged/001.png").rename(tmp_path / "images/damaged/deadly.png")
    return f"deadly://{tmp_path}/images"


def test_a_shard_that_always_kills_its_worker_is_set_aside(anomalyclip: Command, deadly: str, tmp_path: Path):
    anomalyclip("ingest", str(tmp_path / "images"), "--collection", "labelled", "--layout", "folders")
    anomalyclip("train", "--collection", "labelled", "--epochs", "1")
    assert anomalyclip("ingest", deadly, "--collection", "parts").code == 0
    answer = anomalyclip("score", "--collection", "parts", "--shard-size", "4", "--runner", "ray", "--workers", "2")
    assert answer.code == 1
    assert "1 of 6 shards of 'parts' failed, the others are committed" in answer.err
    assert "set aside after 3 tries: its worker died" in answer.err
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "store/collections/parts/runs").glob("*.json")]
    assert (record["scored"], record["shards"], len(record["failed"])) == (20, 5, 1)
    assert len(list((tmp_path / "store/collections/parts").glob("scores/*/part-*.parquet"))) == 5


def test_without_ray_the_extra_is_named(anomalyclip: Command, images: Path, monkeypatch: pytest.MonkeyPatch):
    anomalyclip("ingest", str(images), "--collection", "parts", "--layout", "folders")
    anomalyclip("train", "--collection", "parts", "--epochs", "1")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tasks.ray_runner", raising=False)
    answer = anomalyclip("score", "--collection", "parts", "--runner", "ray")
    assert answer.code == 2
    assert "pip install 'anomalyclip-batch[ray]'" in answer.err
