"""Progress of long work: a bar on standard error and, under a Prefect server, a progress artifact in its UI."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from tqdm import tqdm

log = logging.getLogger(__name__)

ARTIFACT_SECONDS = 2.0  # at most one update of the artifact in this time


def watched() -> bool:
    """Whether this is a run on a server that people look at: nobody looks at an ephemeral one."""
    return FlowRunContext.get() is not None and get_current_settings().api.url is not None


@contextmanager
def dispensable(what: str) -> Iterator[None]:
    """What people look at while work goes on: where the server does not take it, a warning, and the work goes on."""
    try:
        yield
    except Exception as error:
        log.warning("%s is not shown: %s: %s", what, type(error).__name__, error)


class Progress:
    """Counts work that threads do; `advance` is safe to call from any of them."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=True,
                        mininterval=0.2 if terminal else 10.0, disable=total == 0)  # fmt: skip
        self.lock, self.total, self.reported = threading.Lock(), total, time.monotonic()
        self.artifact = self.create_artifact(what)

    def create_artifact(self, what: str) -> UUID | None:
        if not watched():
            return None
        with dispensable(f"the progress of {what}"):
            artifact = create_progress_artifact(progress=0.0, description=what)
            return artifact if isinstance(artifact, UUID) else None
        return None

    def advance(self, n: int = 1) -> None:
        with self.lock:
            self.bar.update(n)
            due = self.artifact and time.monotonic() - self.reported > ARTIFACT_SECONDS
            if due:
                self.reported = time.monotonic()
        if due:
            self.report()

    def report(self) -> None:
        artifact, self.artifact = self.artifact, None  # so it stays without an answer: to wait for one costs a minute
        if artifact and self.total is not None:
            share = min(1.0, self.bar.n / self.total) if self.total else 1.0
            with dispensable("the progress"):
                update_progress_artifact(artifact, progress=100.0 * share)
                self.artifact = artifact


class Stopped(Exception):
    """Somebody asked this process to stop; what is committed stays, the rest is done by the next run."""


stopping = threading.Event()
_current: list[Progress] = []


@contextmanager
def progress(what: str, total: int | None, unit: str = "images") -> Iterator[Progress]:
    """Make this the bar that `advance` moves; steps that run inside know nothing else of it. Without a total it counts."""
    bar = Progress(what, total, unit)
    _current.append(bar)
    try:
        yield bar
        if bar.total is None:
            bar.total = bar.bar.n  # known by now
    finally:
        _current.remove(bar)
        bar.report()
        bar.bar.close()


def advance(n: int = 1) -> None:
    """Move the innermost bar, if there is one; raises Stopped where the process was asked to stop."""
    if stopping.is_set():
        raise Stopped("stopped on request")
    if _current:
        _current[-1].advance(n)
