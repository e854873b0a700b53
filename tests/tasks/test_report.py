"""The page: self-contained, and names are hostile input."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.detector import read_bundle_config
from tasks.evaluation import ClassMetrics
from tasks.manifest import ingest_source
from tasks.registry import ModelVersion
from tasks.report import build_section, write_report
from tasks.scoring import plan_shards, score_shard
from tasks.store import Store
from tests.tasks.conftest import Registered, photo

HOSTILE = "<script>alert(1)</script>\"'&.png"


METRICS = [
    ClassMetrics("<i>nut</i>", 3, 1, 0.5, 0.25, None, None, None, None, None, 0.75),
    ClassMetrics("mean", 3, 1, 0.5, 0.25, None, None, None, None, None, 0.75),
]


@pytest.fixture
def page(store: Store, tmp_path: Path, bundle: Path, registered: Registered) -> str:
    folder = tmp_path / "source" / "<b>bent</b>"
    folder.mkdir(parents=True)
    photo().save(folder / HOSTILE.replace("/", "∕"))
    photo(1).save(folder / "plain.png")
    photo(2).save(folder / "gone.png")
    (folder / "note.png").write_text("a note")
    model = ModelVersion(str(bundle), "bundle", "1", registered.model.digest)
    ingest_source.fn(store.uri, "parts", str(tmp_path / "source"), "folders", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    (folder / "gone.png").unlink()
    uri = write_report.fn(store.uri, "run", model, {"parts": METRICS}, "A <page>")
    return Path(uri.removeprefix("file://")).read_text(encoding="utf-8")


def test_hostile_names_are_escaped(page: str) -> None:
    assert "<script>" not in page
    assert "<b>bent" not in page
    assert "<i>nut" not in page
    assert "&lt;i&gt;nut&lt;/i&gt;" in page
    assert "\"'&amp;.png" not in page  # no quote ends an attribute
    assert "&lt;script&gt;alert(1)" in page
    assert "A &lt;page&gt;" in page


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert re.findall(r"url\(|@import|<script|<link|https?://", page) == []
    assert page.count("data:image/jpeg") == 8  # two images, each in pairs, among the highest and the lowest


def test_unreadable_images_are_listed_with_their_reason(page: str) -> None:
    unreadable = page[page.index("<h3>Unreadable</h3>") :]
    assert "note.png" in unreadable
    assert "unsupported" in unreadable
    assert "4 images scored by bundle.v1, 1 of them unreadable" in page


def test_an_image_that_is_gone_by_now_is_left_out(page: str) -> None:
    assert "plain.png" in page
    assert "gone.png" not in page


def test_undefined_metrics_are_a_dash_and_both_definitions_of_aupro_are_named(page: str) -> None:
    assert "<th>AUPRO (official)</th><th>AUPRO (standard)</th>" in page
    assert "<td>0.500</td><td>0.250</td><td>–</td><td>–</td><td>–</td><td>0.750</td>" in page


def test_ground_truth_is_outlined_where_there_is_some(tmp_path: Path, store: Store, bundle: Path, registered) -> None:
    for name in ("plain.png", "masked.png"):
        photo().save(tmp_path / name)
    mask = Image.new("L", (60, 40))
    mask.paste(255, (15, 10, 45, 30))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "labels.csv").write_text("image,label,mask\nplain.png,0,\nmasked.png,1,mask.png\n")
    model = ModelVersion(str(bundle), "bundle", "1", registered.model.digest)
    ingest_source.fn(store.uri, "parts", str(tmp_path), "labels", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    section = build_section(store, "parts", model, read_bundle_config(bundle), [])
    heats = {card.name: decoded(card.heat) for card in section.highest}
    difference = (
        np.abs(heats["plain.png"] - heats["masked.png"]).max(axis=2) > 40
    )  # the same pixels but for the outline
    rows, columns = np.nonzero(difference)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((10, 29, 15, 44), abs=2)
    assert not difference[15:25, 20:40].any()


def decoded(data_uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2])))).astype(int)
