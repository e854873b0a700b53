"""The alias `champion` and its history: promotion through the gate, and the way back.

The history is a tag of the registered model: the versions that were champion, the present one last. Promotion appends to
it, rollback takes off: two rollbacks go two steps back. A champion that the history does not end with is added to it when
it is read; so one that was set in MLflow's own page, and the first version, which `register_bundle` makes the champion, are
followed. Promotion moves the alias first and writes the history after it, rollback the other way round: cut short in
between, both do the same when they are repeated.

MLflow cannot move an alias on condition. Of two promotions at once the later sees that the champion is not the one it was
compared with, and refuses; in the milliseconds between that look and the move both can pass, and then the champion is
one of two versions that the gate let through, with the other one in the history.
"""

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import InputError
from tasks.gate import REFERENCE, Gate
from tasks.registry import (
    CHAMPION,
    HISTORY,
    MODEL_NAME,
    ModelVersion,
    champion_version,
    resolve_model,
    tag_model,
    use_tracking,
)
from tasks.store import Store


@dataclass(frozen=True)
class RollbackSummary:
    """model: the champion now; left: the one before the rollback, None where there was none."""

    model: str
    left: str | None


@task(name="promote", task_run_name="promote {candidate.version}", cache_policy=NO_CACHE)
def promote_version(store: str, candidate: ModelVersion, gate: Gate, force: bool) -> bool:
    """Tag the version with what the gate found; make it the champion where the gate passed, or by force."""
    client = use_tracking(Store(store))
    tag(client, candidate.version, gate_tags(gate, force))
    if not (gate.passed or force):
        return False
    history = champions(client)
    if champion_version(client) != gate.champion:
        raise InputError("another version has become the champion meanwhile: run the same command again")
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, candidate.version)
    tag_model(client, HISTORY, " ".join([*history, candidate.version]))
    if gate.run and gate.reference:
        tag_model(client, REFERENCE, gate.reference)
    over = f"over version {gate.champion}" if gate.champion else "where there was no champion"
    tag(client, candidate.version, {"promoted": f"{over} {signature()}"})
    return True


@task(name="rollback", cache_policy=NO_CACHE)
def rollback_champion(store: str) -> RollbackSummary:
    """Make the version champion that was it before the present one; raises InputError where there is none left.

    Where there is no champion, as after its version was deleted in MLflow, the last one that is left.
    """
    client = use_tracking(Store(store))
    present = champion_version(client)
    kept = {str(version.version) for version in client.search_model_versions(f"name = '{MODEL_NAME}'")}
    history = champions(client) if kept else []
    while history and (history[-1] == present or history[-1] not in kept):
        history.pop()
    if not history:
        before = f"before version {present}" if present else "and is left"
        raise InputError(f"no version was champion {before}: promote another one")
    tag_model(client, HISTORY, " ".join(history))
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, history[-1])
    if present:
        tag(client, present, {"rolled_back": f"to version {history[-1]} {signature()}"})
    restored = f"from version {present}" if present else "where there was no champion"
    tag(client, history[-1], {"restored": f"{restored} {signature()}"})
    model = resolve_model(Store(store), f"models:/{MODEL_NAME}/{history[-1]}")
    return RollbackSummary(model.uri, f"models:/{MODEL_NAME}/{present}" if present else None)


def champions(client: MlflowClient) -> list[str]:
    """The versions that were champion, in their order, the present one last."""
    history = client.get_registered_model(MODEL_NAME).tags.get(HISTORY, "").split()
    present = champion_version(client)
    return history if present is None or history[-1:] == [present] else [*history, present]


def gate_tags(gate: Gate, force: bool) -> dict[str, str | None]:
    """gate.reason names the metric, the reference, the difference with its interval, the champion and the margin."""
    failed = "overridden" if force else "refused"
    return {
        "gate": f"{'passed' if gate.passed else failed}, {signature()}",
        "gate.reason": gate.reason,
        "gate.reference": gate.reference,
        "gate.run": gate.run,
        "gate.champion_run": gate.champion_run,
    }


def tag(client: MlflowClient, version: str, tags: Mapping[str, str | None]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(MODEL_NAME, version, key, value or "–")


def signature() -> str:
    return f"by {user()} at {datetime.now(UTC).isoformat(timespec='seconds')}"


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return f"uid {os.getuid()}"
