"""From bucket to bucket on a real S3 server, with the AWS variables alone: runs that are killed, and a night on Ray.

2,000 images in shards of 16. A quiet run through threads writes what every other has to end with.
"""

import io
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import s3fs

from infra.gateway import gateway
from infra.supervisor import free_port
from tests.flows.conftest import serving, start, write_images

pytestmark = pytest.mark.stack

IMAGES, DRAWN, SHARD = 2000, 40, 16
RESULTS = "results/store/collections/line"
OPTIONS = ("--collection", "line", "--shard-size", str(SHARD), "--json")
Night = dict[str, bytes]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with a bucket of images and one for results, a Prefect server, and a champion."""
    folder = tmp_path_factory.mktemp("line")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch, gateway(folder / "s3") as s3:
        variables = s3.environment | {
            "ANOMALYCLIP_STORE": "s3://results/store", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "INFO",
        }  # fmt: skip
        for name, value in variables.items():
            patch.setenv(name, value)
        s3.make_buckets("photos", "results")
        upload(folder)
        with serving(port, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
            patch.setenv("SERVER", f"http://127.0.0.1:{port}/api")
            run(folder, "ingest", "s3://photos/line 4", "--collection", "line", "--layout", "folders")
            run(folder, "ingest", "s3://photos/line 4", "--collection", "few", "--layout", "folders")
            run(folder, "train", "--collection", "few", "--epochs", "1")
            yield folder


@pytest.fixture(scope="module")
def quiet(line: Path) -> Night:
    """What an undisturbed run through threads writes."""
    assert run(line, "score", *OPTIONS)["scored"] == IMAGES
    written = results()
    forget()
    return written


@pytest.fixture(autouse=True)
def nothing_scored(line: Path) -> None:
    forget()


def upload(folder: Path) -> None:
    write_images(folder / "images", range(DRAWN), size=64)
    files = sorted((folder / "images").rglob("*.png"))
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    names = [(files[i % DRAWN], f"photos/line 4/{files[i % DRAWN].parent.name}/{i:04d}.png") for i in range(IMAGES)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: bucket.pipe_file(pair[1], pair[0].read_bytes()), names))


def command(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return start(*arguments, cwd=folder, PREFECT_API_URL=os.environ["SERVER"])


def run(folder: Path, *arguments: str) -> Any:
    """What a command that ends well says."""
    process = command(folder, *arguments, *(() if "--json" in arguments else ("--json",)))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out)


def find(kind: str) -> list[str]:
    return list(s3fs.S3FileSystem(use_listings_cache=False).find(f"{RESULTS}/{kind}"))


def results() -> Night:
    paths = [path for kind in ("scores", "maps", "masks") for path in find(kind)]
    return dict(s3fs.S3FileSystem(use_listings_cache=False).cat(paths))


def forget() -> None:
    bucket = s3fs.S3FileSystem(use_listings_cache=False)
    for kind in ("scores", "maps", "masks"):
        if paths := find(kind):
            bucket.rm(paths)


def wait_for_another_shard(process: "subprocess.Popen[str]", done: int) -> None:
    deadline = time.monotonic() + 180
    while len(find("scores")) <= done and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_twenty_times_it_ends_with_the_bytes_of_a_quiet_run(line: Path, quiet: Night):
    draws = random.Random(0)
    for number in range(20):
        process = command(line, "score", *OPTIONS)
        if number % 2:  # while shards are scored and written
            wait_for_another_shard(process, len(find("scores")))
            time.sleep(draws.uniform(0.0, 0.8))
        else:  # while it starts, plans and loads, or a little later
            time.sleep(draws.uniform(0.0, 8.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = len(find("scores"))
    assert 0 < done < IMAGES // SHARD
    summary = run(line, "score", *OPTIONS)
    assert (summary["already_scored"], summary["scored"]) == (done * SHARD, IMAGES - done * SHARD)
    written = results()
    assert written == quiet
    tables = [pq.read_table(io.BytesIO(data)) for path, data in written.items() if "/scores/" in path]
    ids = [image for table in tables for image in table["image_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == IMAGES


def test_a_night_on_ray_of_which_a_worker_is_killed_ends_with_the_bytes_of_threads(line: Path, quiet: Night):
    night = command(
        line, "nightly", "s3://photos/line 4", "--layout", "folders", *OPTIONS, "--runner", "ray", "--workers", "2"
    )
    wait_for_another_shard(night, 0)
    started = psutil.Process(night.pid).children(recursive=True)
    worker = next(child for child in started if child.name().startswith("ray::ShardScore"))
    os.kill(worker.pid, signal.SIGKILL)
    assert len(find("scores")) < IMAGES // SHARD
    out, err = night.communicate(timeout=600)
    assert night.returncode == 0, err
    assert "its worker died" in err
    assert json.loads(out)["scored"] == IMAGES
    assert results() == quiet


def test_two_runs_at_once_write_what_one_writes(line: Path, quiet: Night):
    both = [command(line, "score", *OPTIONS) for _ in range(2)]
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert results() == quiet
