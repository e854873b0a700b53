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
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import psycopg
import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from models.embedded.generator import SPLIT
from tasks.demo_data import generated_files, png
from tests.flows.conftest import hear_ctrl_c
from tests.infra.running import CLASSES, ENDED, ROOT, SOURCE, Running, wait_for

pytestmark = pytest.mark.stack

FLAWLESS, DAMAGED = range(0, 20, 2), range(1, 9, 2)  # numbers of the images of each class
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]  # fmt: skip
ALIAS = re.compile(r"champion$")  # not the tag `champions`
expect.set_options(timeout=60_000)


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
    expect(page.get_by_text(ALIAS)).to_be_visible()
    for button in page.get_by_role("button", name="Close").all():  # MLflow's assistant
        button.click()
    page.get_by_text("Model training").click()
    page.goto(f"{stack.mlflow}/#/models/anomalyclip")
    expect(page.get_by_text(ALIAS)).to_be_visible()
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
    assert len(masks) == stack.count_masks("line-4") > 0
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
    tables = b"".join(content for name, content in places.items() if name.endswith(".parquet"))
    assert not [uri for uri in stack.scores("line-4")["uri"] if uri.encode() not in tables]
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
    return {path: with_cells(content) for path, content in stack.files.cat(paths).items()}


def with_cells(content: bytes) -> bytes:
    """Of a Parquet file also what its cells say, which are compressed in it."""
    if not content.startswith(b"PAR1"):
        return content
    table = pq.read_table(io.BytesIO(content))
    cells = (value for column in table.columns for value in column.to_pylist())
    return b"\n".join([content, *(value if isinstance(value, bytes) else str(value).encode() for value in cells)])


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


def test_no_page_of_another_origin_may_call_prefect(stack: Running):
    def allowed(origin: str) -> bool:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return stack.api.options("/flows/filter", headers=asked).is_success

    assert [allowed("http://example.com"), allowed(stack.prefect)] == [False, True]


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
    check_database_alone(stack)
    stack.start()
    again = stack.anomalyclip("score", "--collection", "line-4")
    assert (again["model"], again["scored"]) == ("models:/anomalyclip/1", 0)
    assert again["already_scored"] == len(stack.scores("line-4"))


def check_database_alone(stack: Running) -> None:
    """For a restore: what the stack has kept can be reached, and nothing else has it open."""
    alone = subprocess.Popen(
        [*stack.command("stack"), "--database-only"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        assert alone.stdout
        assert alone.stdout.readline() == f"PostgreSQL listens on 127.0.0.1:{stack.ports['database']}\n"
        password = json.loads((stack.folder / "stack/credentials.json").read_text())["database_password"]
        address = f"postgresql://anomalyclip:{password}@127.0.0.1:{stack.ports['database']}/mlflow"
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT name FROM registered_models").fetchall() == [("anomalyclip",)]
    finally:
        alone.send_signal(signal.SIGINT)
    assert alone.wait(60) == 0
