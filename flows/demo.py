"""Demo: the whole story on the embedded backbone, offline: generate, ingest, train, score, evaluate, report."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.score import score
from flows.train import train
from tasks.demo_data import copy_solar_cells, generate_images
from tasks.evaluation import ClassMetrics
from tasks.layout_names import Layout
from tasks.registry import resolve_model
from tasks.report import write_report
from tasks.runs import new_run_id
from tasks.store import Store, default_store

AUXILIARY, GENERATED, CELLS = "demo-auxiliary", "demo-unseen-objects", "demo-solar-cells"


@dataclass(frozen=True)
class DemoSummary:
    """metrics: by collection, a row a class with the mean last; seconds: by step, in order."""

    model: str
    metrics: dict[str, list[ClassMetrics]]
    seconds: dict[str, float]
    store: str
    report: str


@flow(name="demo")
def demo(per_family: int = 60, cells: int = 150, epochs: int = 15, store: str | None = None) -> DemoSummary:
    """Learn prompts on generated objects, then inspect generated objects of other families and real solar cells.

    per_family: images of each generated family; cells: photographs of functional and of defective cells, each.
    """
    store, seconds = store or default_store(), dict[str, float]()
    with timed("generate", seconds):
        sources: dict[str, tuple[str, Layout]] = {
            AUXILIARY: (generate_images(store, "auxiliary", per_family), "mvtec"),
            GENERATED: (generate_images(store, "held_out", per_family), "mvtec"),
            CELLS: (copy_solar_cells(store, cells), "folders"),
        }
    with timed("ingest", seconds):
        for collection, (source, layout) in sources.items():
            ingest(source, collection, layout, store=store)
    with timed("train", seconds):
        model = train([AUXILIARY], epochs=epochs, store=store).model
    with timed("score", seconds):
        for collection in (GENERATED, CELLS):
            score(collection, model, store=store)
    with timed("evaluate", seconds):
        metrics = {name: evaluate(name, model, store=store).metrics for name in (GENERATED, CELLS)}
    with timed("report", seconds):
        version = resolve_model(Store(store), model)
        page = write_report(store, new_run_id(), version, metrics, "AnomalyCLIP on objects it has never seen")
    return DemoSummary(model, metrics, seconds, Store(store).uri_of(), page)


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"== {step}", file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 1)
