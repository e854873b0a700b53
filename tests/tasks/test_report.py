"""The page: self-contained, and names are hostile input."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tasks.manifest import ingest_source
from tasks.registry import ModelVersion
from tasks.report import overlay, write_report
from tasks.scoring import plan_shards, score_shard
from tasks.store import Store
from tests.tasks.conftest import Registered, photo

HOSTILE = "<script>alert(1)</script>\"'&.png"


@pytest.fixture
def page(store: Store, tmp_path: Path, bundle: Path, registered: Registered) -> str:
    folder = tmp_path / "source" / "<b>bent</b>"
    folder.mkdir(parents=True)
    photo().save(folder / HOSTILE.replace("/", "∕"))
    photo(1).save(folder / "plain.png")
    (folder / "note.png").write_text("a note")
    model = ModelVersion(str(bundle), "bundle", "1", registered.model.digest)
    ingest_source.fn(store.uri, "parts", str(tmp_path / "source"), "folders", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    uri = write_report.fn(store.uri, "run", model, {"parts": []}, "A <page>")
    return Path(uri.removeprefix("file://")).read_text(encoding="utf-8")


def test_hostile_names_are_escaped(page: str) -> None:
    assert "<script>" not in page
    assert "<b>bent" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "A &lt;page&gt;" in page


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert page.count("data:image/jpeg") == 8  # two images, each in pairs, among the highest and the lowest


def test_unreadable_images_are_listed_with_their_reason(page: str) -> None:
    assert "note.png" in page
    assert "unsupported" in page


def test_heat_is_on_one_absolute_scale() -> None:
    import numpy as np

    image = Image.new("RGB", (4, 4), (100, 100, 100))
    quiet, loud = (np.asarray(overlay(image, np.full((4, 4), p, np.float32))).mean() for p in (0.05, 0.9))
    assert quiet < 100 < loud
