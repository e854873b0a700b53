"""Rollback: the version that was champion before is it again."""

from prefect import flow

from tasks.promotion import RollbackSummary, rollback_champion
from tasks.store import default_store


@flow(name="rollback")
def rollback(store: str | None = None) -> RollbackSummary:
    """Return to the champion before the present one; see tasks.promotion for how far back that goes."""
    return rollback_champion(store or default_store())
