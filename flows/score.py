"""Score: every image of a collection that this model has not scored yet, shard by shard."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.parameters import CollectionName, Model, Precision, ShardSize, StoreUri, Workers
from tasks.artifacts import publish_table
from tasks.errors import InputError
from tasks.manifest import read_manifest
from tasks.progress import progress, stopping
from tasks.registry import CHAMPION_URI, ModelVersion, resolve_model
from tasks.runs import new_run_id, write_run_record
from tasks.scoring import SHARD_SIZE, ScoredShard, Shard, plan_shards, score_shard
from tasks.store import Store, default_store


@dataclass(frozen=True)
class ScoreSummary:
    """Counts of images; unreadable: by kind, among those of this run; scores: the folder with the Parquet parts."""

    run_id: str
    collection: str
    model: str
    images: int
    scored: int
    already_scored: int
    unreadable: dict[str, int]
    shards: int
    seconds: float
    manifest_digest: str
    scores: str


@flow(name="score", flow_run_name="score {collection}")
def score(
    collection: CollectionName,
    model: Model = CHAMPION_URI,
    workers: Workers = 1,
    shard_size: ShardSize = SHARD_SIZE,
    precision: Precision = "fp32",
    store: StoreUri = None,
) -> ScoreSummary:
    """Score what this model has not scored yet; write scores, maps and masks back to the store.

    workers: shards that are scored at the same time in this process. Killed anywhere, the next run goes on with the
    shards that are not committed, and the result is the same to the last byte.
    """
    started, target = time.monotonic(), Store(store or default_store())
    target.check_writable()
    manifest = read_manifest(target, collection)
    version = resolve_model(target, model)
    shards, pending = plan_shards(target, collection, version.partition, shard_size)
    with progress(f"score {collection}", sum(shard.length for shard in pending)):
        done = score_all(target, collection, version, pending, workers, precision)
    images = sum(shard.length for shard in shards)
    scored = sum(shard.images for shard in done)
    unreadable: Counter[str] = Counter()
    for shard in done:
        unreadable.update(shard.unreadable)
    summary = ScoreSummary(
        new_run_id(), collection, version.uri, images, scored, images - scored, dict(unreadable), len(done),
        round(time.monotonic() - started, 2), manifest.digest,
        target.uri_of("collections", collection, "scores", f"model={version.partition}"),
    )  # fmt: skip
    write_run_record(target, collection, "score", summary)
    publish_table("score", collection, [table_row(summary)], f"{collection}, {version.uri}")
    return summary


def table_row(summary: ScoreSummary) -> dict[str, Any]:
    shown = {name: getattr(summary, name) for name in ("collection", "images", "scored", "already_scored", "seconds")}
    return shown | {"unreadable": sum(summary.unreadable.values())}


def score_all(
    store: Store, collection: str, model: ModelVersion, shards: list[Shard], workers: int, precision: str
) -> list[ScoredShard]:
    """A Prefect task a shard, `workers` at a time; raises after all have ended if any failed."""
    parameters = {"store": store.uri, "collection": collection, "model": model, "precision": precision}
    runner: ThreadPoolTaskRunner[ScoredShard] = ThreadPoolTaskRunner(max_workers=workers)
    try:
        with runner:
            futures = [runner.submit(score_shard, parameters | {"shard": shard}) for shard in shards]
            wait_or_stop(futures)
    finally:
        stopping.clear()
    return collect(futures, collection)


def wait_or_stop(futures: Sequence[PrefectFuture[ScoredShard]]) -> None:
    """Wait for all; where somebody interrupts that, tell the shards that are under way to stop."""
    try:
        for future in futures:
            future.wait()
    except BaseException:
        stopping.set()
        raise


def collect(futures: Sequence[PrefectFuture[ScoredShard]], collection: str) -> list[ScoredShard]:
    results = [future.state.result(raise_on_failure=False) for future in futures]
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures:
        if isinstance(failure, InputError):
            raise failure
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(futures)} shards of {collection!r} failed, the others are committed; "
            f"run the same command to go on. The first failure: {failures[0]}"
        ) from failures[0]
    return [result for result in results if isinstance(result, ScoredShard)]
