"""The deployments on a real Prefect server, and a night that a real worker runs from one of them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prefect.events.worker import EventsWorker
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.calibrate import calibrate
from flows.nightly import nightly
from infra.deploy import apply_automations
from models import Detector
from models.backbone import load_backbone
from models.prompts import PromptLearner
from tasks.registry import register_bundle, tracked_run
from tasks.store import Store
from tests.flows.conftest import write_images
from tests.infra.running import wait_for

ROOT = Path(__file__).parents[2]
HOSTILE = "<img src=x onerror=alert(1)>|[x](javascript:alert(1)) _.png"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the server, of the command that applies the deployments, and of the worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("prefect")
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}  # MLflow writes it
    return inherited | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        "ANOMALYCLIP_STORE": str(folder / "store"),
    }


def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    """A program of this Python, in a process group of its own."""
    return subprocess.Popen([sys.executable, "-m", *arguments], env=environment, cwd=ROOT, start_new_session=True)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """With what it has started: a worker's runs have process groups of their own."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    for group in {process.pid, *children}:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def api(environment: dict[str, str]) -> Iterator[httpx.Client]:
    """A server with the deployments."""
    port = environment["PREFECT_API_URL"].rpartition(":")[2].partition("/")[0]
    server = start(environment, "prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    try:
        with httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=60) as client:
            wait_for(lambda: client.get("/health").is_success)
            deploy(environment)
            yield client
    finally:
        kill(server)


def deploy(environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-m", "infra.deploy"], env=environment, cwd=ROOT, check=True, timeout=900)


def post(api: httpx.Client, path: str, **content: Any) -> Any:
    return api.post(path, json=content).raise_for_status().json()


@pytest.fixture(scope="module")
def deployments(api: httpx.Client) -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in post(api, "/deployments/filter")}


def test_without_a_server_nothing_is_deployed(environment: dict[str, str]):
    nowhere = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    run = subprocess.run(
        [sys.executable, "-m", "infra.deploy"], env=nowhere, cwd=ROOT, capture_output=True, timeout=300
    )
    assert run.returncode == 1
    assert run.stderr.startswith(b"PREFECT_API_URL names no server to deploy to")


def test_all_flows_are_deployed_on_the_pool(deployments: dict[str, dict[str, Any]]):
    assert set(deployments) == {"ingest", "train", "score", "evaluate", "nightly"}
    for deployment in deployments.values():
        assert deployment["work_pool_name"] == "anomalyclip"
        assert deployment["tags"] == ["anomalyclip"]
        assert deployment["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert deployment["job_variables"]["stream_output"] is False  # a run goes on when its worker has died


def test_nights_are_scheduled_in_a_time_zone_and_wait_for_each_other(api: httpx.Client, deployments):
    deployment = deployments["nightly"]
    (schedule,) = deployment["schedules"]
    assert (schedule["active"], schedule["schedule"]["timezone"]) == (True, "Europe/Berlin")
    assert (schedule["schedule"]["cron"], deployment["parameters"]["collection"]) == ("0 2 * * *", "line-4")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    runs = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    assert wait_for(lambda: post(api, "/flow_runs/filter", **runs))[0]["state"]["type"] == "SCHEDULED"


def test_what_was_paused_or_limited_stays_so_when_the_deployments_are_applied_again(
    environment: dict[str, str], api: httpx.Client, deployments: dict[str, dict[str, Any]]
):
    path = f"/deployments/{deployments['nightly']['id']}"
    (schedule,) = deployments["nightly"]["schedules"]
    api.patch(f"{path}/schedules/{schedule['id']}", json={"active": False}).raise_for_status()
    api.post(f"/deployments/{deployments['score']['id']}/pause_deployment").raise_for_status()
    api.patch("/work_pools/anomalyclip", json={"concurrency_limit": 7}).raise_for_status()
    deploy(environment)
    assert api.get("/work_pools/anomalyclip").json()["concurrency_limit"] == 7
    (after,) = api.get(path).raise_for_status().json()["schedules"]
    paused = {name: api.get(f"/deployments/{found['id']}").json()["paused"] for name, found in deployments.items()}
    assert paused == {name: name == "score" for name in deployments}
    assert (after["id"], after["active"], after["schedule"]) == (schedule["id"], False, schedule["schedule"])


def test_the_form_shows_descriptions_defaults_and_choices(deployments: dict[str, dict[str, Any]]):
    for deployment in deployments.values():
        for name, field in deployment["parameter_openapi_schema"]["properties"].items():
            assert field.get("description"), f"{deployment['name']}: {name}"
    fields = deployments["nightly"]["parameter_openapi_schema"]["properties"]
    assert {"flat", "mvtec"} < set(fields["layout"]["enum"])
    assert (fields["precision"]["enum"], fields["precision"]["default"]) == (["fp32", "bf16", "fp16"], "fp32")
    assert (fields["workers"]["minimum"], fields["workers"]["default"]) == (1, 1)
    assert deployments["nightly"]["parameter_openapi_schema"]["required"] == ["source", "collection"]


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"precision": "fp8"}, {"layout": "magic"}, {"collection": "../x"}, {"source": ""}]
)
def test_wrong_values_are_refused(api: httpx.Client, deployments: dict[str, dict[str, Any]], wrong: dict[str, Any]):
    path = f"/deployments/{deployments['nightly']['id']}/create_flow_run"
    answer = api.post(path, json={"parameters": {"source": "/photos", "collection": "parts"} | wrong})
    assert answer.status_code == httpx.codes.CONFLICT
    assert next(iter(wrong)) in answer.text


def test_silent_runs_are_crashed_by_one_automation_however_often_it_is_applied(api: httpx.Client):
    with temporary_settings({PREFECT_API_URL: str(api.base_url).rstrip("/")}):
        apply_automations()
    (automation,) = post(api, "/automations/filter")
    assert automation["enabled"]
    assert automation["actions"][0]["state"] == "CRASHED"
    assert "prefect.flow-run.Completed with unreadable images" in automation["trigger"]["expect"]


@pytest.fixture
def parts(environment: dict[str, str], api: httpx.Client, tmp_path: Path) -> Path:
    """A collection with a night behind it and thresholds; in its source there are new and hostile things by now."""
    store, source = environment["ANOMALYCLIP_STORE"], tmp_path / "images"
    backbone = load_backbone("embedded", 96)
    bundle = Detector.build(backbone, PromptLearner(backbone), 96, (4,), 2).save(tmp_path / "bundle")
    with tracked_run(Store(store), "train", {}) as run_id:
        register_bundle(Store(store), bundle, run_id, "of the tests")
    write_images(source, range(60))
    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        nightly(str(source), "parts", store=store)
        calibrate("parts", 0.1, store=store)
        EventsWorker.drain_all()  # later flows of this process would send their events to this server, which is gone then
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    for number in range(40):  # one score, which lies at least half a distribution away from whatever the others had
        noise.save(source / f"{number} {HOSTILE}")
    (source / "torn.png").write_text("no image")
    return source


def test_a_worker_runs_a_night_that_leaves_its_state_artifacts_and_event(
    environment: dict[str, str], api: httpx.Client, deployments: dict[str, dict[str, Any]], parts: Path
):
    path = f"/deployments/{deployments['nightly']['id']}/create_flow_run"
    run = post(api, path, parameters={"source": str(parts), "collection": "parts"}, state={"type": "SCHEDULED"})
    worker = start(environment, "prefect", "worker", "start", "--pool", "anomalyclip")
    try:
        state = wait_for(lambda: ended(api, run["id"]), seconds=900)
    finally:
        kill(worker)
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed with unreadable images"), state["message"]
    assert "41 images" in state["message"]
    assert "1 unreadable (1 unsupported); the scores of parts have moved" in state["message"]

    found = post(api, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    artifacts = {artifact["key"]: artifact for artifact in found}
    assert {a["data"] for a in found if a["type"] == "progress"} == {100.0}
    assert '"unreadable": 1' in artifacts["nightly-parts"]["data"]
    assert "index" in artifacts["nightly-parts-report"]["data"]
    pictures = artifacts["nightly-parts-highest"]["data"]
    assert pictures.count("![heat map](data:image/jpeg;base64,") == 6
    assert pictures.count(r"\<img src\=x onerror\=alert\(1\)\>\|\[x\]\(javascript\:") == 6

    event = {"event": {"name": ["anomalyclip.scores.moved"]}}
    (moved,) = wait_for(lambda: post(api, "/events/filter", filter=event)["events"])
    assert moved["resource"]["prefect.resource.name"] == "parts"
    assert moved["payload"]["classes"]["parts"]["moved"]
    assert any(related["prefect.resource.id"] == f"prefect.flow-run.{run['id']}" for related in moved["related"])
    assert_only_this_run_is_watched(api, f"prefect.flow-run.{run['id']}")


def assert_only_this_run_is_watched(api: httpx.Client, ours: str) -> None:
    """The automation counts the events of the run of a deployment, and not those of runs that were called."""
    (automation,) = post(api, "/automations/filter")
    trigger = EventTrigger.model_validate(automation["trigger"])
    names = {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed with unreadable images"}
    events: list[ReceivedEvent] = []

    def ours_arrived() -> bool:  # events are stored some time after the states that they tell of
        query = {"event": {"name": [*names, "prefect.flow-run.Completed"]}}
        events[:] = map(ReceivedEvent.model_validate, post(api, "/events/filter", filter=query)["events"])
        return {event.event for event in events if event.resource.id == ours} == names

    wait_for(ours_arrived)
    assert {event.event for event in events if event.resource.id != ours} >= {"prefect.flow-run.Completed"}
    for event in events:
        assert trigger.covers(event) == (event.resource.id == ours), event


def ended(api: httpx.Client, run: str) -> dict[str, Any] | None:
    state = api.get(f"/flow_runs/{run}").raise_for_status().json()["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None
