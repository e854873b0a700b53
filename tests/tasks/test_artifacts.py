"""Artifacts: names are hostile."""

import re

import pytest

from tasks.artifacts import artifact_key, as_text


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
