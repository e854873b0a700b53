"""Nightly: ingest, score with the champion, decide, report: what the schedule runs.

There is one deployment of this flow a collection, which runs one at a time. What reads or writes many objects is a task and
tried again; the night as a whole is not, for whatever is committed stays and the next run goes on with it. What Prefect's
page shows comes last: it alone can be done without.
"""

import time
from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State

from flows.ingest import ingest
from flows.parameters import (
    CollectionName,
    LayoutName,
    Precision,
    Runner,
    ShardSize,
    Source,
    StoreUri,
    WorkerCpus,
    WorkerGpus,
    Workers,
)
from flows.score import score
from tasks.errors import InputError
from tasks.manifest import digest_of, list_parts
from tasks.night_artifacts import publish_night
from tasks.nights import FAILED, NightSummary, announce_drift, log_night, read_night, record_night
from tasks.registry import CHAMPION_URI, resolve_model
from tasks.report import write_report
from tasks.runs import new_run_id
from tasks.shards import SHARD_SIZE, OtherScores
from tasks.store import Store, default_store

LONGEST = 20 * 3600.0  # seconds: a night that hangs ends before the next one


@flow(name="nightly", flow_run_name="nightly {collection}", timeout_seconds=LONGEST)
def nightly(
    source: Source,
    collection: CollectionName,
    layout: LayoutName = "flat",
    workers: Workers = 1,
    shard_size: ShardSize = SHARD_SIZE,
    precision: Precision = "fp32",
    runner: Runner = "threads",
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = None,
    store: StoreUri = None,
) -> "State[NightSummary]":
    """Take in what is new in SOURCE, score it with the champion, decide and report.

    The model is resolved once, at the start. The run ends as Completed, as Completed with unreadable images, or as Failed;
    where shards failed, or the model's weights are refused, what the others came to is reported all the same.
    """
    started, target, run_id = time.monotonic(), Store(store or default_store()), new_run_id()
    model = resolve_model(target, CHAMPION_URI)
    ingest.fn(source, collection, layout, store=target.uri)
    parts = list_parts(target, collection)
    failed = score_pending(
        collection=collection, model=model.uri, workers=workers, shard_size=shard_size, precision=precision,
        runner=runner, worker_cpus=worker_cpus, worker_gpus=worker_gpus, store=target.uri,
    )  # fmt: skip
    night = read_night(target.uri, collection, model, failed, parts)
    title = f"Inspection of {collection}"
    report = write_report(
        target.uri, run_id, model, {collection: []}, title, night.notice, night.first_part, len(parts)
    )
    mlflow_run = log_night(target.uri, collection, model, run_id, night)
    summary = NightSummary(
        run_id, collection, source, model.uri, night.state, night.message, len(night.rows), night.scored,
        night.anomalous, night.undecided, night.unreadable, night.moved, failed, night.classes,
        round(time.monotonic() - started, 2), digest_of(parts), len(parts), report, mlflow_run,
    )  # fmt: skip
    announce_drift(summary)
    record_night(target.uri, model, summary)
    try:
        publish_night(target.uri, model, night, summary)
    except Exception:
        get_run_logger().exception("the night is told, but not on this page")
    return end_state(summary)


def score_pending(**parameters: Any) -> str | None:
    """Why some shards are not scored, None where all are. Raises OtherScores, which is wrong use."""
    try:
        score.fn(**parameters)
    except OtherScores:
        raise
    except (RuntimeError, InputError, OSError) as error:
        return str(error) or type(error).__name__  # a time-out may have no words
    return None


def end_state(summary: NightSummary) -> "State[NightSummary]":
    if summary.state == FAILED:
        return Failed(message=summary.message, data=summary)
    return Completed(name=summary.state, message=summary.message, data=summary)
