"""Report: the page of a scored collection, its highest and lowest scores with heat maps."""

from dataclasses import dataclass

from prefect import flow

from tasks.errors import InputError
from tasks.manifest import existing_parts
from tasks.registry import CHAMPION_URI, resolve_model
from tasks.report import write_report
from tasks.runs import new_run_id
from tasks.scored import count_scored
from tasks.store import Store, default_store


@dataclass(frozen=True)
class ReportSummary:
    run_id: str
    collection: str
    model: str
    report: str


@flow(name="report", flow_run_name="report {collection}")
def report(collection: str, model: str = CHAMPION_URI, store: str | None = None) -> ReportSummary:
    """Write one HTML page over a scored collection."""
    store, run_id = store or default_store(), new_run_id()
    existing_parts(Store(store), collection)
    version = resolve_model(Store(store), model)
    if not count_scored(Store(store), collection, version):
        raise InputError(f"{version.uri} has scored nothing of {collection!r}: run `anomalyclip score` first")
    page = write_report(store, run_id, version, {collection: []}, f"Inspection of {collection}")
    return ReportSummary(run_id, collection, version.uri, page)
