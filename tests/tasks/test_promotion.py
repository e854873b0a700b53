"""The champion moves through the gate or by force, says so in MLflow, and finds the way back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.errors import InputError
from tasks.gate import Gate
from tasks.promotion import champions, promote_version, rollback_champion, user
from tasks.registry import CHAMPION, MODEL_NAME, champion_version, tag_model
from tests.tasks.conftest import Versions


def gate(passed: bool, champion: str | None = "1") -> Gate:
    return Gate(passed, "for a reason", champion, "reference", "image_auroc", 0.01, "run-2", "run-1")


def promote(versions: Versions, *numbers: int) -> None:
    for number in numbers:
        found = gate(True, champion_version(versions.client))
        assert promote_version.fn(versions.store.uri, versions.models[number - 1], found, False)


def rollback(versions: Versions) -> str:
    return rollback_champion.fn(versions.store.uri).model


def tags(versions: Versions, number: int) -> dict[str, str]:
    return dict(versions.client.get_model_version(MODEL_NAME, str(number)).tags)


def test_what_passes_becomes_the_champion_and_says_what_the_gate_found(versions: Versions) -> None:
    promote(versions, 2)
    assert champion_version(versions.client) == "2"
    found = tags(versions, 2)
    assert found["gate"].startswith(f"passed, by {user()} at 20")
    assert found["gate.reason"] == "for a reason"
    assert (found["gate.run"], found["gate.champion_run"], found["gate.reference"]) == ("run-2", "run-1", "reference")
    assert found["promoted"].startswith(f"over version 1 by {user()} at 20")
    assert versions.client.get_registered_model(MODEL_NAME).tags["reference"] == "reference"


def test_what_is_refused_is_tagged_and_changes_nothing_else(versions: Versions) -> None:
    assert not promote_version.fn(versions.store.uri, versions.models[1], gate(False), False)
    assert champion_version(versions.client) == "1"
    assert tags(versions, 2)["gate"].startswith("refused")
    assert "promoted" not in tags(versions, 2)
    assert "reference" not in versions.client.get_registered_model(MODEL_NAME).tags


def test_force_is_recorded_with_its_user(versions: Versions) -> None:
    assert promote_version.fn(versions.store.uri, versions.models[1], gate(False), True)
    assert champion_version(versions.client) == "2"
    assert tags(versions, 2)["gate"].startswith(f"overridden, by {user()} at 20")


def test_every_rollback_goes_one_champion_further_back(versions: Versions) -> None:
    promote(versions, 2, 3)
    assert rollback(versions) == "models:/anomalyclip/2"
    assert tags(versions, 3)["rolled_back"].startswith("to version 2 by")
    assert tags(versions, 2)["restored"].startswith("from version 3 by")
    assert rollback(versions) == "models:/anomalyclip/1"
    with pytest.raises(InputError, match="no version was champion before version 1"):
        rollback(versions)
    assert champion_version(versions.client) == "1"


def test_a_version_that_was_champion_twice_is_passed_twice_on_the_way_back(versions: Versions) -> None:
    promote(versions, 2, 1)
    assert [rollback(versions), rollback(versions)] == ["models:/anomalyclip/2", "models:/anomalyclip/1"]
    with pytest.raises(InputError, match="no version was champion before"):
        rollback(versions)


def test_a_champion_that_was_set_in_mlflow_is_followed(versions: Versions) -> None:
    promote(versions, 2)
    versions.client.set_registered_model_alias(MODEL_NAME, CHAMPION, "3")
    assert champions(versions.client) == ["1", "2", "3"]
    assert rollback(versions) == "models:/anomalyclip/2"


def test_a_version_that_was_deleted_is_no_way_back(versions: Versions) -> None:
    promote(versions, 2, 3)
    versions.client.delete_model_version(MODEL_NAME, "2")
    assert rollback(versions) == "models:/anomalyclip/1"


def test_a_champion_that_was_deleted_is_replaced_by_the_one_before(versions: Versions) -> None:
    """MLflow removes the alias with its version."""
    promote(versions, 2)
    versions.client.delete_model_version(MODEL_NAME, "2")
    assert champion_version(versions.client) is None
    assert rollback(versions) == "models:/anomalyclip/1"
    assert tags(versions, 1)["restored"].startswith("where there was no champion by")


def test_where_no_version_was_champion_there_is_no_way_back(versions: Versions) -> None:
    versions.client.delete_registered_model_alias(MODEL_NAME, CHAMPION)
    versions.client.delete_model_version(MODEL_NAME, "1")
    with pytest.raises(InputError, match="no version was champion and is left"):
        rollback(versions)
    versions.client.delete_registered_model(MODEL_NAME)
    with pytest.raises(InputError, match="no version was champion and is left"):
        rollback(versions)


def test_a_gate_against_another_champion_counts_no_more(versions: Versions) -> None:
    promote(versions, 2)
    with pytest.raises(InputError, match="another version has become the champion"):
        promote_version.fn(versions.store.uri, versions.models[2], gate(True, champion="1"), False)
    assert champions(versions.client) == ["1", "2"]


def test_two_promotions_at_once_leave_one_champion_and_a_way_back(versions: Versions) -> None:
    together = Barrier(2)

    def promote_at_once(number: int) -> bool:
        together.wait()
        try:
            return promote_version.fn(versions.store.uri, versions.models[number - 1], gate(True), False)
        except InputError:
            return False

    with ThreadPoolExecutor(2) as threads:
        moved = dict(zip((2, 3), threads.map(promote_at_once, (2, 3)), strict=True))
    champion = champion_version(versions.client)
    assert champion in {str(number) for number, done in moved.items() if done}
    history = champions(versions.client)
    assert (history[0], history[-1]) == ("1", champion)
    while champions(versions.client) != ["1"]:
        rollback(versions)
    assert champion_version(versions.client) == "1"


def test_a_rollback_that_was_cut_short_goes_the_same_way_again(versions: Versions, monkeypatch) -> None:
    """Between the alias and the history, whichever is written first."""
    promote(versions, 2)
    done = []

    def second_fails(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            done.append(call)
            if len(done) == 2:
                raise MlflowException("the server went away")
            return call(*arguments)

        return counted

    with monkeypatch.context() as cut:
        cut.setattr("tasks.promotion.tag_model", second_fails(tag_model))
        cut.setattr(MlflowClient, "set_registered_model_alias", second_fails(MlflowClient.set_registered_model_alias))
        with pytest.raises(MlflowException, match="went away"):
            rollback(versions)
    rollback(versions)
    assert champion_version(versions.client) == "1"
