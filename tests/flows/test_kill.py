"""Runs that are killed or stopped: nothing is lost, nothing is scored twice, the bytes are those of a quiet run."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.flows.conftest import Command, start, write_images
from tests.infra.running import wait_for

KINDS = ("scores", "maps", "masks")


def written(store: Path) -> dict[str, bytes]:
    collection = store / "collections/parts"
    files = [path for kind in KINDS for path in (collection / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(collection)): path.read_bytes() for path in files}


def forget_scores(store: Path) -> None:
    for kind in KINDS:
        shutil.rmtree(store / "collections/parts" / kind, ignore_errors=True)


def committed(store: Path) -> int:
    return len(list((store / "collections/parts").glob("scores/*/part-*.parquet")))


def scoring(tmp_path: Path, *options: str) -> "subprocess.Popen[str]":
    """`score` with small shards, returned as soon as the first of them is committed."""
    process = start("score", "--collection", "parts", "--shard-size", "4", *options, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not committed(tmp_path / "store"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture
def collection(anomalyclip: Command, tmp_path: Path) -> dict[str, bytes]:
    """160 images and a model; returns what a quiet run writes."""
    write_images(tmp_path / "images", range(160), size=64)
    anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders")
    anomalyclip("train", "--collection", "parts", "--epochs", "1")
    anomalyclip("score", "--collection", "parts", "--shard-size", "4")
    quiet = written(tmp_path / "store")
    forget_scores(tmp_path / "store")
    return quiet


def test_a_run_that_was_killed_is_finished_by_the_next_one(anomalyclip: Command, collection, tmp_path: Path):
    process = scoring(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)  # the command and the ephemeral Prefect server that it started
    process.wait()
    done = committed(tmp_path / "store")
    assert 0 < done < 40
    summary = anomalyclip("score", "--collection", "parts", "--shard-size", "4", "--json").json
    assert summary["already_scored"] == 4 * done
    assert summary["scored"] == 160 - 4 * done
    assert written(tmp_path / "store") == collection


def test_a_command_that_is_killed_leaves_no_prefect_server(collection, tmp_path: Path):
    process = scoring(tmp_path)
    started = children(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert len(started) > 1
    wait_for(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in started))


def test_a_command_that_is_terminated_takes_its_prefect_server_with_it(
    anomalyclip: Command, collection, tmp_path: Path
):
    process = scoring(tmp_path)
    started = children(process.pid)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1].startswith("anomalyclip: terminated; what is committed stays")
    assert started
    wait_for(lambda: not any(Path(f"/proc/{child}/exe").exists() for child in started))
    anomalyclip("score", "--collection", "parts", "--shard-size", "4")
    assert written(tmp_path / "store") == collection


def children(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@pytest.mark.parametrize("runner", ["threads", "ray"])
def test_ctrl_c_stops_within_ten_seconds_and_says_what_is_done_and_how_to_go_on(
    anomalyclip: Command, collection, tmp_path: Path, runner: str
):
    process = scoring(tmp_path, "--runner", runner)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the command and all that it started
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    done = 4 * committed(tmp_path / "store")
    assert 0 < done < 160
    told = (
        f"stopped: {done} of 160 images of 'parts' are scored; what is committed stays, run the same command to go on"
    )
    assert err.splitlines()[-1] == f"anomalyclip: {told}"
    assert "Traceback" not in err
    anomalyclip("score", "--collection", "parts", "--shard-size", "4")
    assert written(tmp_path / "store") == collection
