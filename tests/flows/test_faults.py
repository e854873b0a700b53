"""Storage that fails: a busy or broken server, lost connections, refused credentials, a full disk, a clock that jumps."""

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from tasks.manifest import ingest_source
from tasks.store import S3_OPTIONS
from tests.flows.conftest import Command, write_images
from tests.flows.faulty_proxy import Faults, Proxy

RESULTS = "results/store/collections/line"


def results(filesystem: s3fs.S3FileSystem) -> dict[str, bytes]:
    filesystem.invalidate_cache()
    folders = [f"{RESULTS}/{kind}" for kind in ("scores", "maps", "masks")]
    return {path: filesystem.cat_file(path) for folder in folders for path in filesystem.find(folder)}


def tables(files: dict[str, bytes]) -> list[pa.Table]:
    return [
        pq.read_table(pa.BufferReader(data)) for path, data in files.items() if path.startswith(f"{RESULTS}/scores/")
    ]


@pytest.fixture
def scored(anomalyclip: Command, buckets: s3fs.S3FileSystem, monkeypatch, tmp_path: Path) -> dict[str, bytes]:
    """A collection in buckets with a trained model; what a quiet run wrote, which is removed again."""
    monkeypatch.setattr("tasks.features.CACHE", tmp_path / "cache")
    monkeypatch.setenv("ANOMALYCLIP_STORE", "s3://results/store")
    assert anomalyclip("ingest", "s3://photos/line 4", "--collection", "line", "--layout", "folders").code == 0
    assert anomalyclip("train", "--collection", "line", "--epochs", "1").code == 0
    assert anomalyclip("score", "--collection", "line", "--shard-size", "4").code == 0
    quiet = results(buckets)
    for kind in ("scores", "maps", "masks"):
        if buckets.exists(f"{RESULTS}/{kind}"):
            buckets.rm(f"{RESULTS}/{kind}", recursive=True)
    return quiet


@pytest.fixture
def faults(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Set what goes wrong; from now on the command talks to the server through the proxy that does it."""
    faults = Faults()
    with Proxy(s3_server, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setitem(S3_OPTIONS["config_kwargs"], "read_timeout", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield faults
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_server_that_fails_a_quarter_of_the_requests_changes_no_byte(anomalyclip: Command, buckets, scored, faults):
    faults.share = 0.25
    answer = anomalyclip("score", "--collection", "line", "--shard-size", "4")
    assert answer.code == 0, answer.err
    faults.share = 0.0
    assert results(buckets) == scored
    assert all(faults.seen[kind] for kind in faults.kinds), faults.seen
    assert anomalyclip("ingest", "s3://photos/line 4", "--collection", "line", "--layout", "folders").code == 0


def test_a_run_that_fails_half_way_is_finished_by_the_next_one(anomalyclip: Command, buckets, scored, faults):
    faults.refuse = lambda method, path: method == "PUT" and "/maps/" in path
    answer = anomalyclip("score", "--collection", "line", "--shard-size", "4")
    assert answer.code == 1
    assert "run the same command to try again" in answer.err
    faults.refuse = lambda method, path: False
    assert anomalyclip("score", "--collection", "line", "--shard-size", "4").code == 0
    assert results(buckets) == scored


def is_image(method: str, path: str) -> bool:
    return method == "GET" and path.startswith("/photos/") and path.endswith(".png")


@pytest.mark.parametrize("runner", ["threads", "ray"])
def test_an_image_that_may_not_be_read_is_a_row(anomalyclip: Command, buckets, scored, faults, runner: str):
    faults.refuse = lambda method, path: is_image(method, path) and path.endswith("/001.png")
    answer = anomalyclip("score", "--collection", "line", "--shard-size", "4", "--runner", runner)
    assert answer.code == 0, answer.err
    assert faults.seen["denied"] == 1  # no further try
    rows = [row for data in tables(results(buckets)) for row in data.to_pylist()]
    assert [(row["uri"][-7:], row["error_detail"]) for row in rows if row["error_kind"] == "forbidden"] == [
        ("001.png", "Access Denied")
    ]
    assert sum(row["score"] is not None for row in rows) == len(rows) - 1


@pytest.mark.parametrize("images_before", [0, 3])
def test_credentials_that_do_not_suffice_any_more_fail_their_shards_at_once(
    anomalyclip: Command, buckets, scored, faults, images_before: int
):
    """None can be read from the beginning, or after a few."""
    requests = itertools.count()
    faults.refuse = lambda method, path: is_image(method, path) and next(requests) >= images_before
    answer = anomalyclip("score", "--collection", "line", "--shard-size", "4")
    assert answer.code == 1
    assert "3 of 3 shards of 'line' failed" in answer.err
    assert "PermissionError" in answer.err
    assert not tables(results(buckets))
    faults.refuse = lambda method, path: False
    assert anomalyclip("score", "--collection", "line", "--shard-size", "4").code == 0
    assert results(buckets) == scored


def test_credentials_that_may_not_write_are_refused_before_work_starts(anomalyclip: Command, scored, faults):
    faults.refuse = lambda method, path: method in ("PUT", "POST", "DELETE")
    before = faults.seen.copy()
    answer = anomalyclip("score", "--collection", "line")
    assert answer.code == 2
    assert "nothing can be written to the store s3://results/store" in answer.err
    assert (faults.seen - before)["none"] == 0  # not even the manifest was read


@pytest.mark.parametrize("command", [("ingest", "s3://photos/line 4"), ("train",)])
def test_every_command_that_writes_refuses_a_store_that_it_may_not_write_to(
    anomalyclip: Command, buckets, faults, monkeypatch, command: tuple[str, ...]
):
    monkeypatch.setenv("ANOMALYCLIP_STORE", "s3://results/store")
    faults.refuse = lambda method, path: method in ("PUT", "POST", "DELETE")
    answer = anomalyclip(*command, "--collection", "line")
    assert answer.code == 2
    assert "nothing can be written to the store s3://results/store" in answer.err
    assert faults.seen["none"] == 0


def test_a_bucket_that_answers_slow_down_is_listed_and_probed_all_the_same(buckets, faults):
    faults.share, faults.kinds = 0.3, ("busy", "reset", "truncated")
    summary = ingest_source.fn("s3://results/store", "line", "s3://photos/line 4", "folders", True)
    assert (summary.new, summary.unreadable) == (11, 0)
    assert all(faults.seen[kind] for kind in faults.kinds), faults.seen


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_fails_the_run_leaves_no_half_file_and_the_next_one_goes_on(
    anomalyclip: Command, images: Path, small_disk: Path, monkeypatch, tmp_path: Path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("ANOMALYCLIP_STORE", str(small_disk / "store"))
    monkeypatch.setattr("tasks.scoring.score_shard.retries", 0)
    shutil.copytree(images, tmp_path / "more")
    anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders", "--store", str(tmp_path / "roomy"))
    anomalyclip("train", "--collection", "parts", "--epochs", "1", "--store", str(tmp_path / "roomy"))
    anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders")
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free - 24_576))  # room for some of what 6 shards write
    answer = anomalyclip("score", "--collection", "parts", "--shard-size", "4")
    assert answer.code == 1
    assert "No space left on device" in answer.err
    files = [path for path in (small_disk / "store").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".tmp"]
    committed = {path: path.read_bytes() for path in files if "scores" in path.parts}
    filler.unlink()
    assert anomalyclip("score", "--collection", "parts", "--shard-size", "4").code == 0
    assert all(path.read_bytes() == data for path, data in committed.items())
    assert anomalyclip("score", "--collection", "parts", "--json").json["already_scored"] == 24


def test_a_clock_that_jumps_back_neither_loses_nor_repeats_an_image(
    anomalyclip: Command, images: Path, monkeypatch, tmp_path: Path
):
    anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders")
    anomalyclip("train", "--collection", "parts", "--epochs", "1")
    write_images(images, range(24, 30))
    (images / "good/000.png").unlink()

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr("tasks.manifest.datetime", Yesterday)
    again = anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders", "--json").json
    assert (again["new"], again["deleted"], again["unchanged"]) == (6, 1, 23)
    assert anomalyclip("score", "--collection", "parts", "--json").json["scored"] == 30
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = anomalyclip("ingest", "images", "--collection", "parts", "--layout", "folders", "--json").json
    assert (again["new"], again["deleted"], again["unchanged"]) == (0, 0, 29)
