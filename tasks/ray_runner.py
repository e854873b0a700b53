"""Shards on Ray: a pool of actors that keep the model loaded, driven from the flow that scores.

The Ray task runner would give each shard a task run in Prefect's UI, at the price of a round trip to its API for every
one of them. With the pool Prefect sees one progress artifact that moves shard by shard and the log of the workers.

An actor has one shard at a time: when it dies, that shard is known, is scored again by another actor, and is set aside
when it has taken TRIES of them with it. Work is handed over as references: URIs, a Shard, a ModelVersion.

RAY_ADDRESS names an existing cluster, on whose nodes this package, the store and the registry must be reachable;
without it a cluster of this machine alone is started, and stopped at the end. Ray 2.60 listens on every interface of
the machine then; the private option _node_ip_address does not change that (tried).
"""

import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import ceil
from typing import Any

from prefect.logging import get_run_logger

from tasks.errors import InputError
from tasks.progress import advance
from tasks.registry import ModelVersion, configured_tracking_uri
from tasks.scoring import ScoredShard, Shard, ShardFailure, score_shard
from tasks.store import Store

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
except ImportError as error:
    raise InputError("the runner 'ray' needs Ray: pip install 'anomalyclip-batch[ray]'") from error

TRIES = 3  # of one shard, before it is set aside
POLL_SECONDS = 0.5  # how soon a request to stop is seen
OBJECT_STORE_BYTES = 80_000_000  # references are small; Ray's own default is a third of the memory


@dataclass(frozen=True)
class Worker:
    """What each worker asks for; gpus None: its equal share of those that the cluster has, at most one."""

    cpus: float = 1.0
    gpus: float | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a shard, where, and the log lines (level, message) that were written meanwhile."""

    shard: ScoredShard
    worker: str
    log: list[tuple[int, str]]


class LogLines(logging.Handler):
    """Keeps what a worker logs until it is sent along with an answer."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, f"{record.name}: {record.getMessage()}"))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines


class ShardScorer:
    """One worker process. It loads the model with its first shard and keeps it."""

    def __init__(self, store: str, collection: str, model: ModelVersion, precision: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # Ray sets the number of its CPUs; the last bits of a score depend on it
        self.job = (store, collection, model)
        self.precision = precision
        self.log = LogLines()
        logging.getLogger().addHandler(self.log)

    def score(self, shard: Shard) -> Answer:
        scored = score_shard.fn(*self.job, shard, self.precision)
        return Answer(scored, f"{ray.util.get_node_ip_address()} pid {os.getpid()}", self.log.take())


@contextmanager
def cluster(workers: int, cpus: float) -> Iterator[None]:
    """Connected to RAY_ADDRESS, else to a cluster of this machine that lives as long as this."""
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
    folders = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with folders as folder, redirect_stdout(sys.stderr):  # Ray repeats there what workers print; ours is for results
        try:
            if address:
                ray.init(address, **quiet)
            else:
                ray.init(
                    "local", num_cpus=max(os.cpu_count() or 1, ceil(workers * cpus)), include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder, **quiet,
                )  # fmt: skip
        except ConnectionError as error:
            raise InputError(f"no Ray cluster answers at RAY_ADDRESS {address!r}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


def score_on_ray(
    store: Store,
    collection: str,
    model: ModelVersion,
    shards: list[Shard],
    workers: int,
    precision: str,
    worker: Worker,
) -> tuple[list[ScoredShard], list[ShardFailure]]:
    """Score shards with so many workers; returns what is committed and what was set aside after TRIES tries.

    Raises InputError, as a worker met it, at once: the model or the store cannot be used.
    """
    if not shards:
        return [], []
    with cluster(workers, worker.cpus):
        pool = Pool(store, collection, model, shards, min(workers, len(shards)), precision, worker)
        return pool.run()


class Pool:
    """Keeps `workers` actors busy, each with one shard, until every shard is scored or set aside."""

    def __init__(
        self,
        store: Store,
        collection: str,
        model: ModelVersion,
        shards: list[Shard],
        workers: int,
        precision: str,
        worker: Worker,
    ) -> None:
        import torch

        gpus = worker.gpus
        if gpus is None:
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers)
        self.actor = ray.remote(ShardScorer).options(
            num_cpus=worker.cpus, num_gpus=gpus, runtime_env={"env_vars": worker_environment()}
        )
        self.arguments = (str(store.local_root or store.uri), collection, model, precision, torch.get_num_threads())
        self.workers = workers
        self.waiting = deque(shards)
        self.running: dict[Any, tuple[Any, Shard]] = {}  # by the reference of the answer
        self.tries: dict[str, int] = {}
        self.scored: list[ScoredShard] = []
        self.failed: list[ShardFailure] = []
        self.log = get_run_logger()

    def run(self) -> tuple[list[ScoredShard], list[ShardFailure]]:
        for _ in range(self.workers):
            self.give_work(self.new_actor())
        while self.running:
            ready, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
            advance(0)  # raises where somebody asked to stop
            for reference in ready:
                self.give_work(self.take(reference))
        return self.scored, self.failed

    def new_actor(self) -> Any:
        return self.actor.remote(*self.arguments)

    def give_work(self, actor: Any) -> None:
        """Hand the next shard to an actor; one that is not needed any more frees its place for those that wait."""
        if self.waiting:
            shard = self.waiting.popleft()
            self.running[actor.score.remote(shard)] = actor, shard
        else:
            ray.kill(actor)

    def take(self, reference: Any) -> Any:
        """Note what came of a shard; returns the actor that can have the next one."""
        actor, shard = self.running.pop(reference)
        try:
            answer: Answer = ray.get(reference)
        except RayActorError as error:
            self.failed_once(shard, "its worker died", error)
            return self.new_actor()
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from error
            self.failed_once(shard, str(error.cause), error)
            return actor
        for level, line in answer.log:
            self.log.log(level, "%s: %s", answer.worker, line)
        self.log.info("%s: %d images, on %s", shard.name, answer.shard.images, answer.worker)
        self.scored.append(answer.shard)
        advance(answer.shard.images)
        return actor

    def failed_once(self, shard: Shard, reason: str, error: Exception) -> None:
        """Score a shard again, after those that wait, or set it aside."""
        self.tries[shard.name] = tries = self.tries.get(shard.name, 0) + 1
        if tries < TRIES:
            self.log.warning("%s: try %d of %d failed: %s", shard.name, tries, TRIES, error)
            self.waiting.append(shard)
        else:
            self.log.error("%s is set aside after %d tries: %s", shard.name, tries, error)
            self.failed.append(ShardFailure(shard.name, f"set aside after {tries} tries: {reason}"))


def worker_environment() -> dict[str, str]:
    """What a worker on another machine must know of this one; credentials are its own."""
    uri = configured_tracking_uri()
    return {"OMP_WAIT_POLICY": "PASSIVE"} | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
