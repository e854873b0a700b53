"""Nights on the real stack: PostgreSQL, S3, Prefect, MLflow, a worker, and a browser. They run in the order of this file.

SCREENSHOTS=folder keeps the README's pictures there.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
import s3fs
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from infra.supervisor import free_port
from models.embedded.generator import SPLIT
from tasks.demo_data import generated_files, png
from tests.flows.conftest import hear_ctrl_c

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
SOURCE = "s3://images/line-4"
FLAWLESS, DAMAGED = range(0, 20, 2), range(1, 9, 2)  # numbers of the images of each class
CLASSES = SPLIT["held_out"]
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip
expect.set_options(timeout=60_000)
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Running:
    """`make stack` in a folder of its own, and the ways in that its user has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("prefect", "mlflow", "s3", "database")}
        self.prefect, self.mlflow = (f"http://127.0.0.1:{self.ports[name]}" for name in ("prefect", "mlflow"))
        self.api = httpx.Client(base_url=f"{self.prefect}/api", timeout=60)

    def start(self) -> None:
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_LOGGING")}
        with (self.folder / "said").open("w") as said:
            self.process = subprocess.Popen(
                self.command("stack"), cwd=ROOT, env=environment | quick | {"OMP_NUM_THREADS": "1"},
                stdout=said, stderr=said, start_new_session=True, preexec_fn=hear_ctrl_c,
            )  # fmt: skip
        wait_for(lambda: "Ctrl-C stops everything" in self.said() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        lines = (self.folder / "stack" / "environment").read_text().splitlines()
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.files = s3fs.S3FileSystem(
            endpoint_url=self.variables["AWS_ENDPOINT_URL"], key=self.variables["AWS_ACCESS_KEY_ID"],
            secret=self.variables["AWS_SECRET_ACCESS_KEY"], use_listings_cache=False, skip_instance_cache=True,
        )  # fmt: skip

    def command(self, folder: str) -> list[str]:
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        return [sys.executable, "-m", "infra.stack", "--folder", str(self.folder / folder), *ports]

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(120)

    def anomalyclip(self, *arguments: str) -> Any:
        """What the command says in a second shell, which has read the environment's file."""
        command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
        environment = os.environ | self.variables | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def upload(self, numbers: range) -> None:
        """Generated images into the bucket: SOURCE/<class>/<state>/<number>.png."""
        for family in CLASSES:
            for number in numbers:
                for name, pixels in generated_files(family, number).items():
                    if "ground_truth" not in name:
                        self.files.pipe_file(f"{SOURCE}/{name.replace('/test/', '/')}", png(pixels))

    def post(self, path: str, **content: Any) -> Any:
        return self.api.post(path, json=content).raise_for_status().json()

    @property
    def nightly(self) -> dict[str, Any]:
        return next(found for found in self.post("/deployments/filter") if found["name"] == "nightly")

    def unlimited(self) -> str:
        """A copy of the deployment that does not wait for the slots of the dead."""
        copied = ("flow_id", "entrypoint", "work_pool_name", "job_variables", "parameters", "parameter_openapi_schema")
        deployment = {name: value for name, value in self.nightly.items() if name in copied}
        return str(self.post("/deployments/", name="unlimited", **deployment)["id"])

    def runs(self, **parameters: Any) -> list[dict[str, Any]]:
        """Of nightly, the first one first."""
        runs = self.post("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC", flows={"name": {"any_": ["nightly"]}})
        return [run for run in runs if parameters.items() <= run["parameters"].items()]

    def run(self, collection: str) -> str:
        """Starts a night of many small shards; returns its id."""
        path = f"/deployments/{self.unlimited()}/create_flow_run"
        parameters = {"source": SOURCE, "collection": collection, "layout": "folders", "shard_size": 1}
        return str(self.post(path, parameters=parameters, state={"type": "SCHEDULED"})["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.api.get(f"/flow_runs/{run}").raise_for_status().json()["state"])

    def end_of(self, run: str, seconds: float = 240) -> dict[str, Any]:
        return dict(wait_for(lambda: state if (state := self.state(run))["type"] in ENDED else None, seconds))

    def parts(self, collection: str) -> list[str]:
        return list(self.files.glob(f"anomalyclip/store/collections/{collection}/scores/*/part-*.parquet"))

    def scores(self, collection: str) -> pd.DataFrame:
        """Of all images, by their ids: what does not depend on the name of the collection."""
        tables = [pd.read_parquet(io.BytesIO(self.files.cat_file(part))) for part in self.parts(collection)]
        rows = pd.concat(tables).sort_values("image_id", ignore_index=True)
        assert rows["image_id"].is_unique
        return rows[["image_id", "uri", "etag", "class_name", "score", "bundle_digest", "error_kind"]]

    def child(self, words: str) -> psutil.Process:
        """The server whose command line has these words."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if words in " ".join(child.cmdline()))

    def run_process(self, run: str) -> psutil.Process:
        """The process in which the worker has this run."""
        children = self.child("worker start").children(recursive=True)
        return next(child for child in children if child.environ().get("PREFECT__FLOW_RUN_ID") == run)

    def is_half_way(self, collection: str) -> bool:
        return 3 <= len(self.parts(collection)) <= 30


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except (httpx.TransportError, httpx.HTTPStatusError, StopIteration, psutil.Error):
            pass  # a server that restarts; a process that is not there yet, or no longer
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest) -> Iterator[Running]:
    """With a champion that was trained on it, and images of flawless objects in the bucket."""
    folder = Path(tempfile.mkdtemp(prefix="anomalyclip-stack-"))
    folder.chmod(0o711)  # for PostgreSQL's user
    running = Running(folder)
    try:
        running.start()
        running.upload(FLAWLESS)
        train(running)
        yield running
    finally:
        running.stop()
        if request.session.testsfailed:
            print(f"what the stack said and left is kept in {folder}")
        else:
            shutil.rmtree(folder)


def train(stack: Running) -> None:
    for family in SPLIT["auxiliary"]:
        for number in range(12):
            for name, pixels in generated_files(family, number).items():
                stack.files.pipe_file(f"images/auxiliary/{name}", png(pixels))
    assert stack.anomalyclip("ingest", "s3://images/auxiliary", "--collection", "auxiliary", "--layout", "mvtec")["new"]
    assert stack.anomalyclip("train", "--collection", "auxiliary")["model"] == "models:/anomalyclip/1"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Of a browser; whatever a page asks another host for is an error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        yield page
        browser.close()
    assert not [url for url in asked if not re.match(r"http://127\.0\.0\.1[:/]|data:|blob:|file:", url)]


def picture(page: Page, name: str, height: int = 1000) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.set_viewport_size({"width": 1280, "height": height})
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # for what moves
        pixels = Image.open(io.BytesIO(page.screenshot()))
        pixels.convert("RGB").quantize(256, kmeans=4).save(Path(folder) / name, optimize=True)


# --- from the browser -------------------------------------------------------------------------------------------------


def open_form(stack: Running, page: Page) -> None:
    page.goto(f"{stack.prefect}/deployments/deployment/{stack.nightly['id']}/run")
    expect(field(page, "source").locator("textarea")).to_have_value(SOURCE)


def field(page: Page, name: str) -> Locator:
    label = page.locator(".schema-form-property__label", has_text=re.compile(rf"^{name}( \(Optional\))?$"))
    return page.locator(".p-label").filter(has=label)


def test_the_form_refuses_a_wrong_value(stack: Running, page: Page):
    open_form(stack, page)
    field(page, "collection").locator("textarea").fill("refused")
    field(page, "workers").locator("input").fill("0")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("Validation failed for field 'workers'").first).to_be_visible()
    assert not stack.runs(collection="refused")


def test_a_night_is_started_from_the_form_and_its_results_lie_in_the_bucket(stack: Running, page: Page):
    open_form(stack, page)
    field(page, "shard_size").locator("input").fill("4")
    field(page, "layout").locator("button.p-select-button__control").press("ArrowDown")
    page.get_by_text("folders", exact=True).click()
    picture(page, "form.png")
    page.get_by_role("button", name="Submit").click()
    (run,) = wait_for(lambda: stack.runs(collection="line-4", shard_size=4, layout="folders"))
    state = stack.end_of(run["id"])
    images = len(CLASSES) * len(FLAWLESS)
    assert (state["name"], state["message"].partition(";")[0]) == ("Completed", f"{images} images"), state
    scores = stack.scores("line-4")
    assert len(scores) == images
    assert len(stack.parts("line-4")) == images // 4
    assert set(scores["class_name"]) == {family.replace(" ", "_") for family in CLASSES}
    assert scores["score"].between(0, 1).all()
    (report,) = stack.files.glob("anomalyclip/store/collections/line-4/reports/*/index.html")
    assert stack.files.size(report) > 10_000


def test_the_run_shows_its_artifacts(stack: Running, page: Page):
    (run,) = stack.runs(collection="line-4", shard_size=4)
    page.goto(f"{stack.prefect}/runs/flow-run/{run['id']}")
    page.get_by_text("Artifacts", exact=True).click()
    for artifact in ("nightly-line-4", "nightly-line-4-highest", "nightly-line-4-report", "nightly-line-4-mlflow-run"):
        expect(page.get_by_text(artifact, exact=True)).to_be_visible()
    page.wait_for_timeout(2000)
    picture(page, "run.png")
    page.get_by_text("nightly-line-4-highest", exact=True).click()
    expect(page.get_by_role("img", name="heat map")).to_have_count(6)


def test_mlflow_has_the_night_and_the_model_it_was_scored_with(stack: Running, page: Page):
    runs = httpx.post(
        f"{stack.mlflow}/api/2.0/mlflow/runs/search",
        json={"experiment_ids": ["1"], "filter": "attributes.run_name = 'nightly line-4'"},
    )
    (run,) = runs.raise_for_status().json()["runs"]
    assert run["info"]["status"] == "FINISHED"
    page.goto(f"{stack.mlflow}/#/experiments/1/runs/{run['info']['run_id']}")
    expect(page.get_by_text("nightly line-4").first).to_be_visible()
    page.goto(f"{stack.mlflow}/#/models/anomalyclip")
    expect(page.get_by_text("champion")).to_be_visible()
    for button in page.get_by_role("button", name="Close").all():  # MLflow's assistant
        button.click()
    page.get_by_text("Model training").click()
    page.goto(f"{stack.mlflow}/#/models/anomalyclip")
    expect(page.get_by_text("champion")).to_be_visible()
    picture(page, "registry.png", height=560)
    bundle = stack.files.glob("mlflow/**/bundle/config.json")
    assert len(bundle) == 1


# --- by itself ---------------------------------------------------------------------------------------------------------


def test_the_schedule_starts_a_night_that_decides_about_new_images(stack: Running, page: Page):
    stack.anomalyclip("calibrate", "--collection", "line-4", "--false-alarm-rate", "0.1")
    stack.upload(DAMAGED)
    schedules = f"/deployments/{stack.nightly['id']}/schedules"
    parameters = {"layout": "folders", "shard_size": 8}
    schedule = {"active": True, "schedule": {"interval": 10}, "parameters": parameters}
    (created,) = stack.api.post(schedules, json=[schedule]).raise_for_status().json()
    run = wait_for(lambda: [run for run in stack.runs(shard_size=8) if run["state"]["type"] == "RUNNING"])[0]
    stack.api.delete(f"{schedules}/{created['id']}").raise_for_status()
    state, images = stack.end_of(run["id"]), len(CLASSES) * len(DAMAGED)
    assert run["auto_scheduled"]
    assert (state["type"], state["message"].partition(" images")[0]) == ("COMPLETED", str(images)), state
    wait_for(lambda: not unfinished(stack))
    assert len(stack.scores("line-4")) == len(CLASSES) * len([*FLAWLESS, *DAMAGED])
    masks = stack.files.glob("anomalyclip/store/collections/line-4/masks/*/*.png")
    assert 0 < len(masks) <= images
    report = max(stack.files.glob("anomalyclip/store/collections/line-4/reports/*/index.html"))
    stack.files.get_file(report, str(stack.folder / "report.html"))
    page.goto((stack.folder / "report.html").as_uri())
    expect(page.get_by_role("heading", name="Inspection of line-4")).to_be_visible()
    picture(page, "report.png")


def unfinished(stack: Running) -> list[dict[str, Any]]:
    """Scheduled nights that wait for a slot, which are taken back, or still have one."""
    runs = [run for run in stack.runs(shard_size=8) if run["state"]["type"] not in ENDED]
    for run in runs:
        if run["state"]["type"] == "SCHEDULED":
            stack.api.delete(f"/flow_runs/{run['id']}").raise_for_status()
    return runs


# --- when something dies -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silent(stack: Running) -> str:
    """A run whose process and worker were killed half-way: nobody tells the server of it."""
    run = stack.run("silent")
    wait_for(lambda: stack.is_half_way("silent"))
    process, worker = stack.run_process(run), stack.child("worker start")
    worker.kill()
    process.kill()
    wait_for(lambda: stack.child("worker start").pid != worker.pid)
    return run


def test_a_dead_worker_is_started_again(stack: Running, silent: str):
    assert "worker ended with exit code -9" in stack.said()
    assert stack.state(silent)["type"] == "RUNNING"


def test_a_night_whose_worker_is_killed_ends_right(stack: Running):
    run = stack.run("orphaned")
    wait_for(lambda: stack.is_half_way("orphaned"))
    stack.child("worker start").kill()
    state = stack.end_of(run)
    assert state["type"] == "COMPLETED", state
    pd.testing.assert_frame_equal(stack.scores("orphaned"), stack.scores("line-4"))


def test_a_night_whose_process_is_killed_is_crashed_and_the_next_one_ends_right(stack: Running):
    run = stack.run("killed")
    wait_for(lambda: stack.is_half_way("killed"))
    stack.run_process(run).kill()
    assert stack.end_of(run, 60)["name"] == "Crashed"
    done = len(stack.parts("killed"))
    assert 0 < done < len(stack.scores("line-4"))
    state = stack.end_of(stack.run("killed"))
    assert state["type"] == "COMPLETED", state
    assert state["message"].startswith(f"{len(stack.scores('line-4'))} images")
    pd.testing.assert_frame_equal(stack.scores("killed"), stack.scores("line-4"))


def test_a_night_during_which_the_prefect_server_restarts_ends_right(stack: Running):
    run = stack.run("restarted")
    wait_for(lambda: stack.is_half_way("restarted"))
    server = stack.child("prefect server start")
    server.kill()
    wait_for(lambda: stack.child("prefect server start").pid != server.pid)
    state = stack.end_of(run)
    assert state["type"] == "COMPLETED", state
    pd.testing.assert_frame_equal(stack.scores("restarted"), stack.scores("line-4"))


def test_a_silent_run_is_crashed_by_the_automation_and_the_next_night_ends_right(stack: Running, silent: str):
    state = stack.end_of(silent)
    assert (state["name"], state["message"]) == ("Crashed", "no heartbeat for 90 seconds")
    assert 0 < len(stack.parts("silent")) < len(stack.scores("line-4"))
    assert stack.end_of(stack.run("silent"))["type"] == "COMPLETED"
    pd.testing.assert_frame_equal(stack.scores("silent"), stack.scores("line-4"))


# --- secrets and access ------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_database_bucket_log_and_command_line(stack: Running):
    credentials = json.loads((stack.folder / "stack" / "credentials.json").read_text())
    places = databases(stack) | objects(stack) | logs(stack) | command_lines(stack)
    for secret in (credentials["s3_secret_key"], credentials["database_password"]):
        assert len(secret) > 20
        assert not [name for name, content in places.items() if secret.encode() in content]
    for name, known in {
        "prefect": b"nightly line-4",
        "mlflow": b"anomalyclip",
        "worker.log": b"submitting flow run",
    }.items():
        assert known in places[name], name  # it was looked for where things are
    assert any(name.endswith("index.html") for name in places)
    for name in ("credentials.json", "environment"):
        assert (stack.folder / "stack" / name).stat().st_mode & 0o777 == 0o600


def databases(stack: Running) -> dict[str, bytes]:
    """As text: parameters, states, logs, artifacts and events of Prefect; runs and models of MLflow."""
    password = json.loads((stack.folder / "stack" / "credentials.json").read_text())["database_password"]
    command = ["pg_dump", "-h", "127.0.0.1", "-p", str(stack.ports["database"]), "-U", "anomalyclip"]
    environment = os.environ | {"PGPASSWORD": password}
    return {
        name: subprocess.run([*command, name], env=environment, capture_output=True, check=True).stdout
        for name in ("prefect", "mlflow")
    }


def objects(stack: Running) -> dict[str, bytes]:
    paths = [path for bucket in ("anomalyclip", "mlflow", "images") for path in stack.files.find(bucket)]
    assert len(paths) > 100
    return dict(stack.files.cat(paths))


def logs(stack: Running) -> dict[str, bytes]:
    files = [stack.folder / "said", *(stack.folder / "stack").glob("**/*.log")]
    return {file.name: file.read_bytes() for file in files}


def command_lines(stack: Running) -> dict[str, bytes]:
    processes = psutil.Process(stack.process.pid).children(recursive=True)
    return {f"process {process.pid}": " ".join(process.cmdline()).encode() for process in processes}


def test_servers_listen_on_the_loopback_alone(stack: Running):
    family = {child.pid for child in psutil.Process(stack.process.pid).children(recursive=True)}
    connections = psutil.net_connections("inet")
    addresses = [c.laddr for c in connections if c.pid in family and c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in addresses} == {"127.0.0.1"}
    assert set(stack.ports.values()) <= {address.port for address in addresses}


def test_a_second_stack_says_which_port_is_taken(stack: Running):
    done = subprocess.run(stack.command("second"), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    taken = f"stack: something listens on port {stack.ports['prefect']} already: choose another by --prefect-port"
    assert done.stderr.startswith(taken)


def test_ctrl_c_stops_everything_and_the_next_start_goes_on(stack: Running):
    family = psutil.Process(stack.process.pid).children(recursive=True)
    stack.stop()
    assert stack.process.returncode == 0
    assert stack.said().endswith("everything is stopped\n")
    assert not [process for process in family if process.is_running()]
    stack.start()
    again = stack.anomalyclip("score", "--collection", "line-4")
    assert (again["model"], again["scored"]) == ("models:/anomalyclip/1", 0)
    assert again["already_scored"] == len(stack.scores("line-4"))
