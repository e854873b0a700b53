"""Shards on Ray: a pool of actors that keep the model loaded, driven from the flow that scores.

Ray's task runner for Prefect gives every shard a task run, at the price of round trips to its API: with it the same night
takes about twice as long. With the pool Prefect sees a progress artifact and a log line a shard, and what workers log.

An actor has two shards at a time, of which one has the model while the images of the other are read. When it dies both are
known, and another actor tries them again, each alone, so that no shard has to answer for another twice. A shard that has
failed TRIES times is set aside. Work is handed over as references: URIs, a Shard, a ModelVersion.

RAY_ADDRESS names a cluster that exists, on whose nodes this package, the store and the registry must be reachable.
Without it one is started on this machine and stopped at the end. It listens on 127.0.0.1 alone: Ray does so where it
thinks itself unable to span machines, as on macOS, and on Linux where RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER says so
(_node_ip_address="127.0.0.1" does not help, Ray replaces it). Other users of the machine are kept out by a token of this
process's own, which Ray would else share between all runs in ~/.ray/auth_token.
"""

import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from prefect.logging import get_run_logger

from tasks.errors import InputError
from tasks.progress import advance
from tasks.registry import configured_tracking_uri, without_password
from tasks.retries import may_pass
from tasks.scoring import score_shard
from tasks.shards import ScoredShard, Shard, ShardFailure

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
if "RAY_ADDRESS" not in os.environ:  # all of these are read when Ray is imported
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
try:
    import ray
    from ray.exceptions import RayActorError, RayError
except ImportError as error:
    raise InputError("the runner 'ray' needs Ray: pip install '.[ray]'") from error

AT_ONCE = 2  # shards of an actor
TRIES = 3  # of one shard, before it is set aside
BACKOFF_SECONDS = 5.0  # before the second try, twice as long before each further one
OBJECT_STORE_BYTES = 80_000_000  # references are small; Ray's own default is a third of the memory
NO_MEMORY_MONITOR = {"memory_monitor_refresh_ms": 0}  # it kills our workers for the memory that others have taken


@dataclass(frozen=True)
class Answer:
    """What came of a shard, where, and the warnings and errors (level, message) that were logged meanwhile.

    transient: whether another try may help where it failed.
    """

    result: ScoredShard | ShardFailure | InputError
    transient: bool
    worker: str
    log: list[tuple[int, str]]


class LogLines(logging.Handler):
    """Keeps what a worker logs until it is sent along with an answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, f"{record.name}: {self.format(record)}"))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines


class ShardScorer:
    """One worker process. It loads the model with its first shard and keeps it."""

    def __init__(self, job: dict[str, Any], threads: int) -> None:
        self.job, self.threads, self.log = job, threads, LogLines()
        logging.getLogger().addHandler(self.log)

    def score(self, shard: Shard, delay: float) -> Answer:
        import torch

        torch.set_num_threads(self.threads)  # of this thread: the last bits of a score depend on it
        result: ScoredShard | ShardFailure | InputError
        transient = True
        time.sleep(delay)
        try:
            result = score_shard.fn(**self.job, shard=shard)
        except InputError as error:
            result = error
        except Exception as error:
            logging.exception("%s failed", shard.name)
            result = ShardFailure(shard.name, f"{type(error).__name__}: {error}")
            transient = may_pass(error)
        return Answer(result, transient, f"{ray.util.get_node_ip_address()} pid {os.getpid()}", self.log.take())


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Connected to RAY_ADDRESS, else to a cluster of this machine that lives as long as this."""
    address = os.environ.get("RAY_ADDRESS")
    folders = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with folders as folder, redirect_stdout(sys.stderr):  # Ray repeats there what workers print; ours is for results
        if address:
            connect(address)
        else:
            ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                     _temp_dir=folder, logging_level=logging.ERROR, _system_config=NO_MEMORY_MONITOR)  # fmt: skip
        try:
            yield
        finally:
            ray.shutdown()


def connect(address: str) -> None:
    """To a cluster that exists; InputError where nobody listens, for which Ray itself would ask for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        if address != "auto":  # the cluster of this machine
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, logging_level=logging.ERROR)
    except (OSError, ValueError, RayError) as error:
        raise InputError(f"the Ray cluster RAY_ADDRESS={address!r} cannot be used: {error}") from error


def score_on_ray(
    job: dict[str, Any], shards: list[Shard], workers: int, cpus: float, gpus: float | None
) -> tuple[list[ScoredShard], list[ShardFailure]]:
    """Score shards with so many workers; returns what is committed and what was set aside after TRIES tries.

    job: the parameters of score_shard but the shard. cpus, gpus: what each worker asks for; gpus None: its equal share of
    those that the cluster has, at most one. Raises InputError, as a worker met it, at once: no other try would help.
    """
    for name, asked in (("cores", cpus), ("GPUs", 0.0 if gpus is None else gpus)):
        if not 0 <= asked < inf:
            raise InputError(f"a worker cannot ask for {asked:g} {name}")
    workers = min(workers, len(shards))
    if not shards:
        return [], []
    with cluster(ceil(workers * cpus)):
        available = ray.cluster_resources().get("GPU", 0.0)
        if gpus is None:
            gpus = 1 / ceil(workers / available) if available else 0.0
        if gpus > available and "RAY_ADDRESS" not in os.environ:  # another cluster may grow
            raise InputError(f"a worker asks for {gpus:g} GPUs, this machine has {available:g}")
        return Pool(job, shards, workers, cpus, gpus).run()


class Pool:
    """Keeps actors busy, until every shard is scored or set aside."""

    def __init__(self, job: dict[str, Any], shards: list[Shard], workers: int, cpus: float, gpus: float) -> None:
        import torch

        self.actor = ray.remote(ShardScorer).options(
            num_cpus=cpus, num_gpus=gpus, max_concurrency=AT_ONCE, runtime_env=worker_environment()
        )
        self.arguments = job, torch.get_num_threads()
        self.workers, self.waiting = workers, deque(shards)
        self.running: dict[Any, tuple[Any, Shard]] = {}  # by the reference of the answer
        self.tries: dict[Shard, int] = {}
        self.earliest: dict[Shard, float] = {}  # when a shard that has failed may be tried again
        self.scored: list[ScoredShard] = []
        self.failed: list[ShardFailure] = []
        self.log = get_run_logger()

    def run(self) -> tuple[list[ScoredShard], list[ShardFailure]]:
        self.give_work(*(self.new_actor() for _ in range(self.workers)))
        while self.running:
            (reference,), _ = ray.wait(list(self.running))
            self.give_work(self.take(reference))
        return self.scored, self.failed

    def new_actor(self) -> Any:
        return self.actor.remote(*self.arguments)

    def give_work(self, *actors: Any) -> None:
        """Hand out the next shards in turn; an actor that is not needed any more frees its place for those that wait."""
        for _ in range(AT_ONCE):
            for actor in actors:
                if self.waiting and self.may_have(actor, self.waiting[0]):
                    shard = self.waiting.popleft()
                    delay = max(0.0, self.earliest.get(shard, 0.0) - time.monotonic())
                    self.running[actor.score.remote(shard, delay)] = actor, shard
        for actor in actors:
            if not self.shards_of(actor):
                ray.kill(actor)

    def shards_of(self, actor: Any) -> list[Shard]:
        return [shard for owner, shard in self.running.values() if owner is actor]

    def may_have(self, actor: Any, shard: Shard) -> bool:
        """One that has a shard only reads ahead: not the last ones, which others are soon free for, nor where one failed."""
        has = self.shards_of(actor)
        failed = any(self.tries.get(each) for each in (shard, *has))
        return not has or (len(has) < AT_ONCE and len(self.waiting) >= self.workers and not failed)

    def take(self, reference: Any) -> Any:
        """Note what came of a shard, or of all of an actor that died; returns the actor that can have the next one."""
        actor, shard = self.running.pop(reference)
        try:
            answer: Answer = ray.get(reference)
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise RuntimeError(f"Ray's workers cannot start: {error}") from error
            self.log.error("%s", error)
            for lost in (shard, *self.shards_of(actor)):
                self.failed_once(ShardFailure(lost.name, "its worker died"), lost)
            self.running = {kept: work for kept, work in self.running.items() if work[0] is not actor}
            ray.kill(actor)  # where Ray has only lost sight of it
            return self.new_actor()
        for level, line in answer.log:
            self.log.log(level, "%s: %s", answer.worker, line)
        if isinstance(answer.result, InputError):
            raise answer.result
        if isinstance(answer.result, ShardFailure) and answer.transient:
            self.failed_once(answer.result, shard)
        elif isinstance(answer.result, ShardFailure):
            self.log.error("%s failed: %s", shard.name, answer.result.reason)
            self.failed.append(answer.result)
        else:
            self.log.info("%s: %d images, on %s", shard.name, answer.result.images, answer.worker)
            self.scored.append(answer.result)
            advance(answer.result.images)
        return actor

    def failed_once(self, failure: ShardFailure, shard: Shard) -> None:
        """Score a shard again, after those that wait, or set it aside."""
        self.tries[shard] = tries = self.tries.get(shard, 0) + 1
        if tries < TRIES:
            self.log.error("%s: try %d of %d failed: %s", shard.name, tries, TRIES, failure.reason)
            self.earliest[shard] = time.monotonic() + BACKOFF_SECONDS * 2 ** (tries - 1)
            self.waiting.append(shard)
        else:
            self.log.error("%s is set aside after %d tries: %s", shard.name, tries, failure.reason)
            self.failed.append(ShardFailure(shard.name, f"set aside after {tries} tries: {failure.reason}"))


def worker_environment() -> dict[str, Any]:
    """What a worker on another machine must know of this one; here it inherits all. Ray logs it: no credentials."""
    if "RAY_ADDRESS" not in os.environ:
        return {}
    uri = configured_tracking_uri()
    return {
        "env_vars": {"OMP_WAIT_POLICY": "PASSIVE"} | ({"MLFLOW_TRACKING_URI": without_password(uri)} if uri else {})
    }
