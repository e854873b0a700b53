"""Score: every image of a collection that this model has not scored yet, shard by shard."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters import (
    CollectionName,
    Model,
    Precision,
    Runner,
    ShardSize,
    StoreUri,
    WorkerCpus,
    WorkerGpus,
    Workers,
)
from tasks.artifacts import publish_table
from tasks.errors import InputError
from tasks.manifest import digest_of, existing_parts
from tasks.progress import progress, stopping
from tasks.registry import CHAMPION_URI, resolve_model
from tasks.runs import new_run_id, write_run_record
from tasks.scoring import score_shard
from tasks.shards import (
    SHARD_SIZE,
    ScoredShard,
    Shard,
    ShardFailure,
    check_done,
    model_folder,
    not_committed,
    plan_shards,
)
from tasks.store import Store, default_store

WAITING = 4  # shards a worker that are submitted: each costs memory in Prefect until it is done


@dataclass(frozen=True)
class ScoreSummary:
    """Counts of images, each version of an object one; unreadable: by kind, among those of this run; scores: the folder with
    the Parquet parts.

    anomalous: None where nothing was decided, for want of a calibration; failed: shards that this run could not score, with
    the reason; the next run tries them again.
    """

    run_id: str
    collection: str
    model: str
    precision: str
    images: int
    scored: int
    already_scored: int
    anomalous: int | None
    unreadable: dict[str, int]
    shards: int
    failed: list[ShardFailure]
    seconds: float
    manifest_digest: str
    scores: str


class ShardsFailed(RuntimeError):
    """Some shards are not scored; summary: what the others came to."""

    def __init__(self, sentence: str, summary: ScoreSummary) -> None:
        super().__init__(sentence)
        self.summary = summary

    def __reduce__(self) -> tuple[type, tuple[str, ScoreSummary]]:
        """Where Prefect keeps results it pickles them."""
        return type(self), (str(self), self.summary)


@flow(name="score", flow_run_name="score {collection}")
def score(
    collection: CollectionName,
    model: Model = CHAMPION_URI,
    workers: Workers = 1,
    shard_size: ShardSize = SHARD_SIZE,
    precision: Precision = "fp32",
    runner: Runner = "threads",
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = None,
    store: StoreUri = None,
) -> ScoreSummary:
    """Score what this model has not scored yet; write scores, maps and masks back to the store.

    workers: shards that are scored at the same time, in threads of this process or by Ray's workers, each of which asks
    for worker_cpus and worker_gpus (fractions too; by default its share of the cluster's). Killed anywhere, the next run
    goes on with the shards that are not committed, and the result is the same to the last byte. Raises InputError where
    the model has scored the collection in another precision.
    """
    started, target = time.monotonic(), Store(store or default_store())
    score_shards = shard_scorer(runner, workers, worker_cpus, worker_gpus)
    target.check_writable()
    parts = existing_parts(target, collection)
    version = resolve_model(target, model)
    shards, pending = plan_shards(target, collection, version.partition, shard_size, parts)
    check_done(target, collection, version, precision, shards, pending)
    left = sum(shard.length for shard in pending)
    uri = str(target.local_root or target.uri)  # a worker need not have our working directory
    job = {"store": uri, "collection": collection, "model": version, "precision": precision}
    images = sum(shard.length for shard in shards)
    try:
        with progress(f"score {collection}", left):
            done, failed = score_shards(job, pending)
    except KeyboardInterrupt:
        left = sum(shard.length for shard in not_committed(target, collection, version.partition, pending))
        raise KeyboardInterrupt(f"{images - left} of {images} images of {collection!r} are scored") from None
    scored = sum(shard.images for shard in done)
    unreadable, decisions = Counter[str](), Counter[str]()
    for shard in done:
        unreadable.update(shard.unreadable)
        decisions.update(shard.decisions)
    anomalous = decisions["anomalous"] if decisions else None
    summary = ScoreSummary(
        new_run_id(), collection, version.uri, precision, images, scored, images - left, anomalous, dict(unreadable),
        len(done), failed, round(time.monotonic() - started, 2), digest_of(parts),
        target.uri_of(*model_folder(collection, version.partition)),
    )  # fmt: skip
    write_run_record(target, collection, "score", summary)
    publish_table("score", collection, [table_row(summary)], f"{collection}, {version.uri}")
    if failed:
        raise ShardsFailed(
            f"{len(failed)} of {len(pending)} shards of {collection!r} failed, the others are committed; run the same "
            f"command to try again. The first failure: {failed[0].name}: {failed[0].reason}",
            summary,
        )
    return summary


def table_row(summary: ScoreSummary) -> dict[str, Any]:
    shown = {name: getattr(summary, name) for name in ("collection", "images", "scored", "already_scored", "seconds")}
    anomalous = "–" if summary.anomalous is None else summary.anomalous
    return shown | {
        "anomalous": anomalous, "unreadable": sum(summary.unreadable.values()), "failed shards": len(summary.failed),
    }  # fmt: skip


def shard_scorer(
    runner: Runner, workers: int, cpus: float, gpus: float | None
) -> Callable[[dict[str, Any], list[Shard]], tuple[list[ScoredShard], list[ShardFailure]]]:
    """Takes the parameters of score_shard but the shard, and shards; returns what is committed, and what failed."""
    if runner == "threads":
        return partial(score_in_threads, workers=workers)
    from tasks.ray_runner import score_on_ray  # Ray is an extra

    return partial(score_on_ray, workers=workers, cpus=cpus, gpus=gpus)


def score_in_threads(
    job: dict[str, Any], shards: list[Shard], workers: int
) -> tuple[list[ScoredShard], list[ShardFailure]]:
    """A Prefect task a shard, `workers` at a time and one that reads ahead; a few more wait, however many there are."""
    runner: ThreadPoolTaskRunner[ScoredShard] = ThreadPoolTaskRunner(max_workers=workers + 1)
    done, failed = list[ScoredShard](), list[ShardFailure]()
    waiting = deque[tuple[Shard, PrefectFuture[ScoredShard]]]()
    try:
        with runner, stopped_on_error():
            for shard in shards:
                waiting.append((shard, runner.submit(score_shard, job | {"shard": shard})))
                if len(waiting) >= WAITING * workers:
                    collect(*waiting.popleft(), done, failed)
            while waiting:
                collect(*waiting.popleft(), done, failed)
    finally:
        stopping.clear()
    return done, failed


@contextmanager
def stopped_on_error() -> Iterator[None]:
    """Where somebody interrupts the block, or it fails, tell the shards that are under way to stop."""
    try:
        yield
    except BaseException:
        stopping.set()
        raise


def collect(
    shard: Shard, future: "PrefectFuture[ScoredShard]", done: list[ScoredShard], failed: list[ShardFailure]
) -> None:
    """Wait for a shard, and sort its result; raises InputError where its input is refused."""
    future.wait()
    result = future.state.result(raise_on_failure=False)
    if isinstance(result, InputError):
        raise result
    if isinstance(result, ScoredShard):
        done.append(result)
    else:
        failed.append(ShardFailure(shard.name, f"{type(result).__name__}: {result}"))
