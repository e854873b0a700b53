"""From a bucket to a bucket, configured by the AWS variables alone."""

import json
import tempfile
from pathlib import Path

from infra.supervisor import free_port
from tests.flows.conftest import Command, serving, start


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
    assert page.startswith("s3://results/store/collections/line/reports/")
    assert buckets.info(page)["ContentType"] == "text/html"
    assert buckets.cat(page).startswith(b"<!doctype html>")
    exported = anomalyclip("export", "--collection", "line", "--format", "coco", "--json").json
    assert exported["output"] == "s3://results/store/collections/line/exports/model=anomalyclip.v1/coco.json"
    content = json.loads(buckets.cat(exported["output"]))
    assert (len(content["images"]), len(content["unreadable"])) == (9, 2)
    assert len(content["annotations"]) == exported["regions"]
    again = anomalyclip("ingest", source, "--collection", "line", "--layout", "folders", "--json").json
    assert (again["new"], again["changed"], again["deleted"], again["unchanged"]) == (0, 1, 1, 9)


def test_a_remote_store_without_a_tracking_server_is_refused(anomalyclip: Command, buckets, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    anomalyclip("ingest", "s3://photos/line 4", "--collection", "line", "--store", "s3://results/other")
    answer = anomalyclip("score", "--collection", "line", "--store", "s3://results/other")
    assert answer.code == 2
    assert "set MLFLOW_TRACKING_URI" in answer.err


def test_a_ray_cluster_that_exists_scores_from_bucket_to_bucket_with_the_bytes_of_threads(
    anomalyclip: Command, buckets, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr("tasks.features.CACHE", tmp_path / "cache")
    monkeypatch.setenv("ANOMALYCLIP_STORE", "s3://results/ray")
    listed = anomalyclip("ingest", "s3://photos/line 4", "--collection", "line", "--layout", "folders", "--json").json[
        "new"
    ]
    anomalyclip("train", "--collection", "line", "--epochs", "1")
    arguments = ("score", "--collection", "line", "--shard-size", "4", "--json")
    answer = anomalyclip(*arguments)
    assert answer.code == 0, answer.err
    assert answer.json["scored"] == listed
    folders = [f"results/ray/collections/line/{kind}" for kind in ("scores", "maps", "masks")]
    quiet = {path: buckets.cat(path) for folder in folders for path in buckets.find(folder)}
    for path in quiet:
        buckets.rm(path)
    buckets.invalidate_cache()
    port, folder = free_port(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # sockets want a short path
    for name, value in {
        "RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of the cluster",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PYTHONPATH": str(Path(__file__).parents[2]),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    head = ("start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
            "--node-ip-address=127.0.0.1", f"--temp-dir={folder.name}")  # fmt: skip
    with serving(port, "ray.scripts.scripts", *head):
        process = start(*arguments, "--runner", "ray", "--workers", "2", cwd=tmp_path)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["scored"] == listed
    assert {path: buckets.cat(path) for folder in folders for path in buckets.find(folder)} == quiet
    buckets.rm(next(path for path in quiet if "/scores/" in path))
    answer = anomalyclip(*arguments, "--runner", "ray")
    assert answer.code == 2
    assert f"RAY_ADDRESS='127.0.0.1:{port}' cannot be used" in answer.err
