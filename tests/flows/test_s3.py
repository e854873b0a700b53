"""From a bucket to a bucket, configured by the AWS variables alone."""

from pathlib import Path

from tests.flows.conftest import Command


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
