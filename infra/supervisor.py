"""Child processes that belong together: started in order, each awaited until it serves, stopped in reverse.

A child gets a session of its own, so that Ctrl-C in a terminal reaches the supervisor alone, and a mark in its environment,
by which what it started itself is found when it has to end (Linux: /proc).
"""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

LOOPBACK = "127.0.0.1"
MARK = "SUPERVISED_AS"
GRACE = 15.0  # seconds between SIGTERM and SIGKILL


class ChildError(RuntimeError):
    """A child that ended by itself, or that does not serve in time, in one sentence with the end of its log."""


@dataclass
class Child:
    name: str
    spawn: Callable[[], "subprocess.Popen[bytes]"]
    process: "subprocess.Popen[bytes]"
    ready: Callable[[], bool]
    seconds: float  # until it is ready
    log: Path
    mark: str
    stop_signal: int

    def wait(self) -> None:
        """Until it is ready. ChildError when it ends or is not ready in time."""
        deadline = time.monotonic() + self.seconds
        while not self.ready():
            self.check_alive()
            if time.monotonic() > deadline:
                what = f"{self.name} does not serve after {self.seconds:.0f} s"
                raise ChildError(f"{what}; {self.log} ends with: {last_words(self.log)}")
            time.sleep(0.1)

    def check_alive(self) -> None:
        if (code := self.process.poll()) is not None:
            raise ChildError(f"{self.name} ended with exit code {code}; {self.log} ends with: {last_words(self.log)}")

    def stop(self, grace: float = GRACE) -> None:
        """End it, and whatever it has started and left behind."""
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        self.kill()

    def kill(self) -> None:
        while left := marked_processes(self.mark):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
        if self.process.poll() is None:  # one that writes over its environment, as PostgreSQL does
            self.process.kill()
        self.process.wait()


class Supervisor:
    """Starts children; as a context manager it stops all of them at its end, however that comes."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self.logs = logs
        self.environment = dict(os.environ if environment is None else environment)
        self.children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        ready: Callable[[], bool] = lambda: True,
        seconds: float = 120,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: int = signal.SIGTERM,
    ) -> Child:
        """A child whose output goes to NAME.log; back when `ready`. ChildError when it ends or is not ready in time."""
        mark, log = secrets.token_hex(8), self.logs / f"{name}.log"
        variables = self.environment | dict(environment or {}) | {MARK: mark}

        def spawn() -> "subprocess.Popen[bytes]":
            with log.open("ab") as output:
                return subprocess.Popen(
                    command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True, user=user, group=user, extra_groups=None if user is None else [],
                )  # fmt: skip

        child = self.children[name] = Child(name, spawn, spawn(), ready, seconds, log, mark, stop_signal)
        child.wait()
        return child

    def watch(self, restarts: int = 0, tell: Callable[[str], object] = print) -> None:
        """For ever. One that ends by itself is started again (what it has started goes on); one too many: ChildError."""
        while True:
            for child in self.children.values():
                try:
                    child.check_alive()
                except ChildError as error:
                    if restarts == 0:
                        raise
                    restarts -= 1
                    tell(f"{error}; it is started again")
                    child.process = child.spawn()
                    child.wait()
            time.sleep(0.5)

    def stop(self) -> None:
        """All of them, the last one first. A second Ctrl-C meanwhile kills what is left instead of waiting for it."""
        while self.children:
            _, child = self.children.popitem()
            try:
                child.stop()
            except KeyboardInterrupt:
                child.kill()
                for other in self.children.values():
                    other.kill()
                raise


def marked_processes(mark: str) -> list[int]:
    """Those with this mark that are not zombies: a child and what it has started."""
    sought, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if sought in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def last_words(log: Path) -> str:
    """Its last two lines: the last one may but tell what to do about the one before."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-2:]) or "nothing"


def free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def listens(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, port)) == 0

    return ready


def answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            with urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    return ready
