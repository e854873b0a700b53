"""Promote: make a version the champion, through the gate."""

from dataclasses import dataclass

from prefect import flow

from tasks.errors import InputError
from tasks.gate import Gate, pass_gate
from tasks.promotion import promote_version
from tasks.registry import MODEL_NAME, resolve_model
from tasks.store import Store, default_store


@dataclass(frozen=True)
class PromoteSummary:
    """promoted: whether the version is the champion now; forced: although the gate did not pass."""

    model: str
    promoted: bool
    forced: bool
    gate: Gate


@flow(name="promote", flow_run_name="promote {version}")
def promote(
    version: str,
    reference: str | None = None,
    metric: str = "image_auroc",
    margin: float = 0.01,
    force: bool = False,
    store: str | None = None,
) -> PromoteSummary:
    """Make a version (its number or models:/ URI) the champion if tasks.gate lets it pass, or by force.

    reference: the collection to compare on; without one, that of the last promotion.
    """
    store = store or default_store()
    candidate = resolve_model(
        Store(store), version if version.startswith("models:/") else f"models:/{MODEL_NAME}/{version}"
    )
    if candidate.name != MODEL_NAME:
        raise InputError(f"{candidate.uri} is no version of {MODEL_NAME}")
    gate = pass_gate(store, candidate, reference, metric, margin, force)
    promoted = promote_version(store, candidate, gate, force)
    return PromoteSummary(candidate.uri, promoted, promoted and not gate.passed, gate)
