"""A registered version as MLflow's pyfunc: the scores of the flow, in this process and behind `mlflow models serve`."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpx
import mlflow
import pandas as pd
import pytest
import yaml

from infra.supervisor import free_port
from models.maps import map_at
from tasks.errors import InputError
from tasks.manifest import ingest_source
from tasks.registry import CHAMPION_URI, open_detector, use_tracking
from tasks.scoring import score_shard
from tasks.served import IMAGE_ROOTS, SERVING, THRESHOLDS, is_below
from tasks.shards import model_folder, plan_shards
from tasks.store import Store, read_uri
from tasks.tables import SCORES, read_parts
from tasks.thresholds import ClassThreshold, Thresholds, write_thresholds
from tests.tasks.conftest import Registered, photo

PHOTOS = {"a.png": (40, 60), "b 100%.png": (90, 30), "c.png": (64, 64)}


class Scored(NamedTuple):
    """What the flow made of three photos and a text: rows by name; and the file of the thresholds that it decided by."""

    registered: Registered
    folder: Path
    rows: dict[str, dict[str, Any]]
    thresholds: str


@pytest.fixture(scope="module")
def scored(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    folder, store, model = tmp_path_factory.mktemp("photos"), registered.store, registered.model
    for number, (name, size) in enumerate(PHOTOS.items()):
        photo(number, *size).save(folder / name)
    (folder / "note.png").write_text("a note")
    detector = open_detector(store, model)
    found = [
        detector.score_grids(detector.preprocess(photo(n, *s)).unsqueeze(0)) for n, s in enumerate(PHOTOS.values())
    ]
    scores = sorted(float(score) for score, _ in found)
    peaks = sorted(float(map_at(grid[0], 64, 64, 96, 4.0).max()) for _, grid in found)
    classes = {"parts": ClassThreshold(99, (scores[0] + scores[1]) / 2, (peaks[0] + peaks[1]) / 2)}
    thresholds = Thresholds("parts", model.uri, model.digest, "of the tests", 0, 0.5, classes)
    written = write_thresholds(store, "parts", model.partition, thresholds)
    ingest_source.fn(store.uri, "parts", str(folder), "flat", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    table = read_parts(store, *model_folder("parts", model.partition), schema=SCORES).to_pylist()
    return Scored(registered, folder, {row["uri"].rpartition("/")[2]: row for row in table}, written)


def load(scored: Scored) -> Any:
    use_tracking(scored.registered.store)
    return mlflow.pyfunc.load_model(CHAMPION_URI)


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """What was answered is what stands in the scores table, mask included."""
    if expected["error_kind"]:
        assert (row["score"], row["error_kind"]) == (None, expected["error_kind"])
        return
    assert row["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert (row["decision"], row["threshold"]) == (expected["decision"], expected["threshold"])
    assert [r["area"] for r in row["regions"]] == [r["area"] for r in expected["regions"]]
    assert [r["peak"] for r in row["regions"]] == pytest.approx([r["peak"] for r in expected["regions"]], abs=1e-6)
    if expected["mask_uri"] is None:
        assert row["mask"] is None
    else:
        assert base64.b64decode(row["mask"]) == Path(expected["mask_uri"].removeprefix("file://")).read_bytes()


@pytest.mark.parametrize("form", ["uri", "path", "bytes", "base64", "base64 in lines", "data URI"])
def test_the_same_image_has_the_same_row_as_in_the_flow(
    scored: Scored, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(THRESHOLDS, scored.thresholds)
    assert {row["decision"] for row in scored.rows.values()} == {"normal", "anomalous", None}
    assert any(row["mask_uri"] for row in scored.rows.values())
    images = [as_given(scored, name, form) for name in scored.rows]
    answer = load(scored).predict(pd.DataFrame({"image": images}, index=[7, 8, 9, 10]))
    assert list(answer.index) == [7, 8, 9, 10]
    for row, expected in zip(answer.to_dict("records"), scored.rows.values(), strict=True):
        check(row, expected)


def as_given(scored: Scored, name: str, form: str) -> Any:
    data = (scored.folder / name).read_bytes()
    text = base64.b64encode(data).decode()
    return {
        "uri": scored.rows[name]["uri"], "path": str(scored.folder / name), "bytes": data, "base64": text,
        "base64 in lines": base64.encodebytes(data).decode(),
        "data URI": f"data:image/png;base64,{text}",
    }[form]  # fmt: skip


def test_a_bad_image_is_a_row_among_good_ones(scored: Scored) -> None:
    good = (scored.folder / "a.png").read_bytes()
    images = [good, b"", good[:200], None, 7, "not base64!", "nowhere://x/y.png", str(scored.folder), good]
    answer = load(scored).predict(pd.DataFrame({"image": pd.Series(images, dtype=object)}))
    kinds = [None, "empty", "corrupt", "unsupported", "unsupported", "missing", "unreadable", "unreadable", None]
    assert answer["error_kind"].tolist() == kinds
    assert answer["score"].notna().tolist() == [kind is None for kind in kinds]
    assert answer["error_detail"].notna().tolist() == [kind is not None for kind in kinds]


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET


def test_an_address_that_fails_costs_no_other_image_its_answer(scored: Scored) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        images = [f"http://127.0.0.1:{server.server_port}/a.png", "/no\0name.png", str(scored.folder / "a.png")]
        answer = load(scored).predict(pd.DataFrame({"image": images}))
        server.shutdown()
    assert answer["error_kind"].tolist() == ["unreadable", "unreadable", None]


def test_without_thresholds_nothing_is_decided(scored: Scored) -> None:
    answer = load(scored).predict(pd.DataFrame({"image": [str(scored.folder / "a.png")]}))
    assert answer[["decision", "threshold", "p_value"]].isna().all(axis=None)
    detector = open_detector(scored.registered.store, scored.registered.model)
    _, grids = detector.score_grids(detector.preprocess(photo(0, *PHOTOS["a.png"])).unsqueeze(0))
    exceeds = map_at(grids[0], *PHOTOS["a.png"], 96, 4.0) > 0.5  # the mask is that of half the scale
    assert sum(region["area"] for region in answer["regions"][0]) == exceeds.sum()
    assert (answer["mask"][0] is not None) == exceeds.any()


def test_thresholds_are_those_of_the_class_that_is_named(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THRESHOLDS, scored.thresholds)
    frame = pd.DataFrame({"image": [str(scored.folder / "a.png")] * 2, "class_name": ["parts", "others"]})
    decisions = load(scored).predict(frame)["decision"].tolist()
    assert decisions == [scored.rows["a.png"]["decision"], None]


def test_thresholds_of_another_bundle_are_refused(
    scored: Scored, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {"parts": ClassThreshold(99, 0.5, 0.5)}
    other = Thresholds("parts", "models:/anomalyclip/7", "0" * 64, "of the tests", 0, 0.5, classes)
    monkeypatch.setenv(THRESHOLDS, write_thresholds(store, "parts", "anomalyclip.v7", other))
    with pytest.raises(InputError, match="thresholds of models:/anomalyclip/7, another bundle"):
        load(scored)


def test_a_version_holds_code_signature_and_example_and_no_pickle(scored: Scored) -> None:
    model = load(scored)
    folder = Path(mlflow.artifacts.download_artifacts(CHAMPION_URI))
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavor["model_code_path"] == "served_model.py"
    assert {path.suffix for path in folder.iterdir()} == {"", ".json", ".py", ".safetensors", ".txt", ".yaml"}
    assert [column.name for column in model.metadata.signature.inputs] == ["image", "class_name"]
    answer = model.predict(model.input_example)
    assert answer["error_kind"].tolist() == [None]
    assert {column.name for column in model.metadata.signature.outputs} == set(answer.columns)


@pytest.mark.parametrize(
    ("uri", "root", "below"),
    [
        ("s3://photos/line 4/a.png", "s3://photos", True),
        ("s3://photos/line 4/a.png", "s3://photos/line 4/", True),
        ("s3://photos2/a.png", "s3://photos", False),
        ("s3://photos/line 4/../secret.png", "s3://photos/line 4", False),
        ("https://host/photos/%2e%2e/secret.png", "https://host/photos", False),
        ("https://host/photos/..%5csecret.png", "https://host/photos", False),
        ("{tmp}/photos/a.png", "{tmp}/photos", True),
        ("file://{tmp}/photos/a.png", "{tmp}/photos", True),
        ("{tmp}/photos/a.png", "file://{tmp}/photos", True),
        ("{tmp}/photos/../secret.png", "{tmp}/photos", False),
        ("file://{tmp}/photos/link/secret.png", "{tmp}/photos", False),
        ("local://{tmp}/secret.png", "{tmp}/photos", False),
        ("{tmp}/in/../secret.png", "{tmp}/photos", False),
        ("{tmp}/in/a.png", "{tmp}/photos", True),
        ("{tmp}/photos/a.png", "s3://photos", False),
        ("s3://photos/a.png", "{tmp}/photos", False),
    ],
)
def test_what_is_below_a_root(uri: str, root: str, below: bool, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/link").symlink_to(tmp_path)
    (tmp_path / "photos/deep").mkdir()
    (tmp_path / "in").symlink_to(tmp_path / "photos/deep")
    assert is_below(uri.format(tmp=tmp_path), root.format(tmp=tmp_path)) is below


def test_what_may_be_read_is_what_the_environment_names(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo().save(tmp_path / "outside.png")
    frame = pd.DataFrame({"image": [str(scored.folder / "a.png"), str(tmp_path / "outside.png")]})
    model = load(scored)
    assert model.predict(frame)["error_kind"].tolist() == [None, None]
    monkeypatch.setenv(IMAGE_ROOTS, f"s3://photos, {scored.folder}")
    assert model.predict(frame)["error_kind"].tolist() == [None, "forbidden"]
    monkeypatch.setenv(SERVING, "true")
    assert model.predict(frame)["error_kind"].tolist() == [None, "forbidden"]
    monkeypatch.setenv(IMAGE_ROOTS, "")
    assert model.predict(frame)["error_kind"].tolist() == ["forbidden", "forbidden"]


@pytest.fixture
def server(scored: Scored) -> Iterator[str]:
    """The champion behind `mlflow models serve` on this machine."""
    port = free_port()
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{scored.registered.store.local_root}/mlflow.db", THRESHOLDS: scored.thresholds,
        "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = ["models", "serve", "-m", CHAMPION_URI, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_server_answers_as_the_flow_does_and_reads_nothing_by_its_name(scored: Scored, server: str) -> None:
    images = [[as_given(scored, name, "base64")] for name in scored.rows]
    named = [[row["uri"]] for row in scored.rows.values()]
    request = {"dataframe_split": {"columns": ["image"], "data": [*images, *named]}}
    answer = httpx.post(server, json=request, timeout=60)
    assert answer.is_success, answer.text
    rows = json.loads(answer.text, parse_constant=pytest.fail)["predictions"]  # NaN is no JSON
    for row, expected in zip(rows, scored.rows.values(), strict=False):
        check(row, expected)
    assert [row["error_kind"] for row in rows[len(images) :]] == ["forbidden"] * len(named)
    assert all(row["score"] is None for row in rows[len(images) :])


def test_thresholds_are_read_from_the_file_that_is_named(
    scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = json.loads(read_uri(scored.thresholds)) | {"reference": None}
    (tmp_path / "threshold.json").write_text(json.dumps(given))
    given["classes"]["parts"]["score"] = 0.987
    (tmp_path / "line-4.json").write_text(json.dumps(given))
    monkeypatch.setenv(THRESHOLDS, str(tmp_path / "line-4.json"))
    answer = load(scored).predict(pd.DataFrame({"image": [str(scored.folder / "a.png")], "class_name": "parts"}))
    assert answer["threshold"].tolist() == [0.987]
