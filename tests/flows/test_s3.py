"""From a bucket to a bucket, configured by the AWS variables alone."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.flows.conftest import Command, write_images

AWKWARD = ("good/a+b 100%.png", "good/größe #1.png", "good/two words.png")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.fixture
def buckets(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """Buckets `photos` with images of awkward names and `results`, and MLflow in a database of the test's own."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    for bucket in ("photos", "results"):
        filesystem.call_s3("create_bucket", Bucket=bucket)
    write_images(tmp_path / "images", range(8))
    filesystem.put(str(tmp_path / "images"), "photos/line 4", recursive=True)
    for name in AWKWARD:
        filesystem.put_file(str(tmp_path / "images/good/000.png"), f"photos/line 4/{name}")
    return filesystem


def test_a_bucket_is_ingested_trained_on_scored_and_evaluated(
    anomalyclip: Command, buckets, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr("tasks.features.CACHE", tmp_path / "cache")
    monkeypatch.setenv("ANOMALYCLIP_STORE", "s3://results/store")
    source = "s3://photos/line 4"
    assert anomalyclip("ingest", source, "--collection", "line", "--layout", "folders", "--json").json["new"] == 11
    assert anomalyclip("train", "--collection", "line", "--epochs", "1").code == 0
    buckets.rm("photos/line 4/good/002.png")
    buckets.pipe("photos/line 4/good/004.png", b"not an image")
    scored = anomalyclip("score", "--collection", "line", "--json").json
    assert (scored["scored"], scored["unreadable"]) == (11, {"changed": 1, "missing": 1})
    assert "nothing to score" in anomalyclip("score", "--collection", "line").out
    assert anomalyclip("evaluate", "--collection", "line", "--json").json["metrics"][0]["images"] == 9
    page = anomalyclip("report", "--collection", "line", "--json").json["report"]
    assert page.startswith("s3://results/store/reports/")
    assert buckets.cat(page).startswith(b"<!doctype html>")
    again = anomalyclip("ingest", source, "--collection", "line", "--layout", "folders", "--json").json
    assert (again["new"], again["changed"], again["deleted"], again["unchanged"]) == (0, 1, 1, 9)


def test_a_remote_store_without_a_tracking_server_is_refused(anomalyclip: Command, buckets, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    anomalyclip("ingest", "s3://photos/line 4", "--collection", "line", "--store", "s3://results/other")
    answer = anomalyclip("score", "--collection", "line", "--store", "s3://results/other")
    assert answer.code == 2
    assert "set MLFLOW_TRACKING_URI" in answer.err
