"""The meta.json of the published code."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import InputError
from tasks.layouts import read_layout
from tests.tasks.miniatures import facts, write


def row(image: str, anomaly: Any, mask: str = "", kind: str = "good") -> dict[str, Any]:
    return {"img_path": image, "mask_path": mask, "cls_name": "nut", "specie_name": kind, "anomaly": anomaly}


def write_meta(root: Path, *rows: dict[str, Any]) -> Path:
    write(root, "nut/a.png", "nut/b.png", "nut/b_mask.png", "nut/c.png")
    (root / "meta.json").write_text(json.dumps({"train": {"nut": [row("nut/c.png", 0)]}, "Test": {"nut": list(rows)}}))
    return root


@pytest.mark.parametrize("named", ["", "/meta.json"])
def test_meta_json_tells_split_class_kind_and_mask(named: str, tmp_path: Path) -> None:
    write_meta(tmp_path, row("nut/a.png", 0), row(f"{tmp_path}/nut/b.png", 1, f"{tmp_path}/nut/b_mask.png", "bent"))
    _, entries = read_layout(f"{tmp_path}{named}", "meta", "parts")
    assert facts(tmp_path, entries) == {
        "nut/c.png": ("nut", "train", 0, None, None),
        "nut/a.png": ("nut", "test", 0, None, None),
        "nut/b.png": ("nut", "test", 1, "bent", "nut/b_mask.png"),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("nut/gone.png", 0)], r"'nut/gone\.png', which does not exist"),
        ([row("nut/b.png", 1, "nut/gone.png")], r"'nut/gone\.png', which does not exist"),
        ([row("../a.png", 0)], "points outside"),
        ([row("/etc/passwd", 0)], "points outside"),
        ([row("nut/a.png", 2)], "must hold splits"),
        ([row("nut/a.png", 0), row("nut/a.png", 1)], r"names 'nut/a\.png' twice"),
        ([row("nut/a.png", 1, "nut/b_mask.png"), row("nut/b.png", 1, "nut/b_mask.png")], "and to another"),
        (["nut/a.png"], "must hold splits"),
    ],
)
def test_meta_json_that_cannot_be_used_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    write_meta(tmp_path, *rows)
    with pytest.raises(InputError, match=message):
        read_layout(str(tmp_path), "meta", "parts")


def test_a_folder_without_meta_json_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"has no 'meta\.json'"):
        read_layout(str(tmp_path), "meta", "parts")
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_layout(str(tmp_path), "meta", "parts")
