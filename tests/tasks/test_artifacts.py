"""Artifacts: names are hostile."""

import re
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.artifacts import update_progress_artifact
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.artifacts import artifact_key, as_text
from tasks.progress import advance, progress


@pytest.mark.parametrize(
    "name", ["<img src=x>", "a|b", "[x](javascript:1)", "**_x_**", "`x`", "www.x.y", "&lt;", "a\\|b"]
)
def test_no_character_of_a_name_means_anything_in_markdown(name: str) -> None:
    shown = as_text(name)
    assert re.sub(r"\\(.)", r"\1", shown) == name
    assert not re.search(r"[<>|\[\]()*_`&.:\\]", re.sub(r"\\.", "", shown))


def test_a_name_stays_on_its_line() -> None:
    assert as_text("bent\n# nut\r\n") == r"bent \# nut"


def test_keys_are_what_prefect_allows() -> None:
    assert artifact_key("nightly", "Line_4.b", "highest") == "nightly-line-4-b-highest"
    keys = [artifact_key("nightly", name) for name in ("線", "縫", "größe")]
    assert len(set(keys)) == 3
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in keys)


def test_work_goes_on_while_the_server_of_its_progress_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's client asks again for a minute: after the first time nothing is reported."""
    asked = []

    def update(artifact: UUID, **values: Any) -> None:
        asked.append(artifact)
        update_progress_artifact(artifact, **values)

    monkeypatch.setattr("tasks.progress.update_progress_artifact", update)
    monkeypatch.setattr("tasks.progress.ARTIFACT_SECONDS", 0.0)
    unreachable = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0})
    with unreachable, progress("score", 3) as bar:
        bar.artifact = uuid4()
        for _ in range(3):
            advance()
    assert len(asked) == 1
    assert "the progress is not shown" in caplog.text
