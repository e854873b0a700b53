"""What the caps of pyproject.toml protect is imported and started, so that a wrong resolve is noticed."""

import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_installed_version_is_in_its_range(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_torchvision_was_built_for_this_torch() -> None:
    from torchvision.ops import nms  # fails to import beside another torch

    assert callable(nms)


@pytest.fixture
def prefect_server_url(tmp_path: Path) -> Iterator[str]:
    """A real Prefect server whose scheduler looks every second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.kill()
        server.wait()


def test_prefect_server_takes_a_deployment_and_schedules_its_runs(prefect_server_url: str) -> None:
    """fastapi from 0.151 on answers deployments with 422; with SQLAlchemy 2.1 no scheduled run is ever created."""
    with httpx.Client(base_url=prefect_server_url, timeout=10) as client:
        wait_for(lambda: client.get("/health").is_success, seconds=120)
        flow = post(client, "/flows/", {"name": "nightly"})
        schedule = {"schedule": {"interval": 3600}, "active": True}
        deployment = {"name": "nightly", "flow_id": flow["id"], "schedules": [schedule]}
        post(client, "/deployments/", deployment)
        wait_for(lambda: post(client, "/flow_runs/filter", {}), seconds=60)


def post(client: httpx.Client, path: str, content: dict[str, Any], tries: int = 10) -> Any:
    """The answer; 503 is Prefect's word for an SQLite that is busy, and its own client asks again, too."""
    for _ in range(tries):
        answer = client.post(path, json=content)
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(0.5)
    return answer.raise_for_status().json()


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(0.5)


def test_mlflow_and_pandas_are_the_current_generations() -> None:
    """A pyarrow that mlflow refuses makes pip fall back to mlflow 1.30 and pandas 1.5."""
    assert int(version("mlflow").partition(".")[0]) >= 3
    assert int(version("pandas").partition(".")[0]) >= 2
