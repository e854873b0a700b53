"""A small collection on disk, and a way to call the command in this process or in one of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest
import s3fs
from PIL import Image

from flows.cli import main
from infra.supervisor import free_port
from models.embedded.generator import SPLIT, scene

AWKWARD = ("good/a+b 100%.png", "good/größe #1.png", "good/two words.png")


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Answer]


def write_images(folder: Path, numbers: range, size: int = 96) -> None:
    """Generated objects in the layout `folders`, every second one damaged."""
    families = SPLIT["auxiliary"]
    for number in numbers:
        made = scene(families[number % len(families)], size, number, n_damaged=1)
        state, pixels = ("damaged", made.damaged[0]) if number % 2 else ("good", made.normal)
        (folder / state).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / state / f"{number:03d}.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_images(folder, range(24))
    return folder


@pytest.fixture
def anomalyclip(
    prefect_server: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """The command in this process, on a store of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))  # the command makes it

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def hear_ctrl_c() -> None:
    """A shell that runs the tests in the background lets them, and all that they start, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str, cwd: Path, **variables: str) -> "subprocess.Popen[str]":
    """The command in a process group of its own, with a Prefect server of its own unless a variable names one."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("PREFECT_API_URL", None)
    return subprocess.Popen(
        command, cwd=cwd, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hear_ctrl_c,
    )  # fmt: skip


@contextmanager
def serving(port: int, *command: str) -> Iterator[None]:
    """A server, a module of Python with arguments, in a process of its own, from when it listens."""
    server = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    port = free_port()
    with serving(port, "moto.server", "-H", "127.0.0.1", "-p", str(port)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def buckets(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """Buckets `photos` with images of awkward names and `results`, no others; MLflow in a database of the test's own."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{s3_server}/moto-api/reset", method="POST")).close()
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    for bucket in ("photos", "results"):
        filesystem.call_s3("create_bucket", Bucket=bucket)
    write_images(tmp_path / "images", range(8))
    filesystem.put(str(tmp_path / "images"), "photos/line 4", recursive=True)
    for name in AWKWARD:
        filesystem.put_file(str(tmp_path / "images/good/000.png"), f"photos/line 4/{name}")
    return filesystem
