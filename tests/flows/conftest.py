"""A small collection on disk, and a way to call the command in this process or in one of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from flows.cli import main
from models.embedded.generator import SPLIT, scene


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


def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    """The command in a process group of its own, with its own Prefect home."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("PREFECT_API_URL", None)
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hear_ctrl_c,
    )  # fmt: skip
