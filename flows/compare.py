"""Compare: evaluation runs beside each other, with intervals of their differences."""

from prefect import flow

from tasks.comparison import CompareSummary, compare_runs
from tasks.store import default_store


@flow(name="compare")
def compare(runs: list[str], store: str | None = None) -> CompareSummary:
    """Put the metrics of evaluation runs on one collection side by side; see tasks.comparison for what is refused."""
    return compare_runs(store or default_store(), runs)
