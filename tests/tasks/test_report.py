"""The page: self-contained, of bounded size, and names are hostile input. What it does in a browser: test_report_page."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from models.detector import read_bundle_config
from tasks.evaluation import ClassMetrics
from tasks.manifest import ingest_source, records
from tasks.registry import ModelVersion
from tasks.report import (
    Picture,
    as_script_json,
    first_rows,
    make_picture,
    named,
    outline_of,
    with_rest,
    within,
    write_report,
)
from tasks.scoring import score_shard
from tasks.shards import plan_shards
from tasks.store import Store
from tests.tasks.conftest import photo

HOSTILE = "</script><script>alert(1)</script>\"'&\u2028\n<!--.png".replace("/", "∕")
METRICS = [
    ClassMetrics("<u>nut</u>", 3, 1, 0.5, 0.25, None, None, 0.125, 0.375, None, 0.75),
    ClassMetrics("mean", 3, 1, 0.5, 0.25, None, None, None, None, None, 0.75),
]


class Page(HTMLParser):
    """A page as a browser takes it apart: names of its elements, contents of its scripts and styles, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.inline, self.text, self.policy = html, list[str](), list[tuple[str, str]](), "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attributes)
        assert "src" not in given
        assert "href" not in given
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("script", "style") and self.cdata_elem:
            self.inline.append((self.tags[-1], data))
        else:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(next(content for tag, content in self.inline if tag == "script"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "<u>bent"
    folder.mkdir(parents=True)
    photo().save(folder / HOSTILE)
    photo(1).save(folder / "plain.png")
    photo(2).save(folder / "gone.png")
    (folder / "note.png").write_text("a note")
    return folder


@pytest.fixture
def scored(store: Store, source: Path, model: ModelVersion) -> ModelVersion:
    ingest_source.fn(store.uri, "parts", str(source.parent), "folders", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    (source / "gone.png").unlink()
    return model


@pytest.fixture
def page(store: Store, scored: ModelVersion) -> Page:
    uri = write_report.fn(store.uri, "run", scored, {"parts": METRICS}, "A <page>", "The scores have <moved>")
    assert uri.endswith("/store/collections/parts/reports/run/index.html")
    return Page(Path(uri.removeprefix("file://")).read_text(encoding="utf-8"))


def test_hostile_names_are_text(page: Page) -> None:
    assert page.tags.count("script") == 2
    assert "u" not in page.tags
    for text in ("A <page>", "The scores have <moved>", "<u>nut</u>"):
        assert text in page.text
    names = [page.data["root"] + name for name in page.data["columns"]["name"]]
    assert any(name.endswith(f"/<u>bent/{HOSTILE}") for name in names)
    assert page.data["columns"]["defect_type"] == ["<u>bent"] * 4


def test_json_in_a_script_cannot_end_it() -> None:
    hostile = {"name": HOSTILE, "more": "<!--<script>]]>\u2029\x00"}
    text = as_script_json(hostile)
    assert not re.search("[<>&\u2028\u2029\n\x00]", text)
    assert json.loads(text) == hostile


def test_the_page_loads_nothing_and_runs_nothing_but_its_own(page: Page) -> None:
    assert re.findall(r"url\(|@import|<link|(?<!w3.org)https?://(?!www.w3.org/2000/svg)", page.html) == []
    assert page.policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in page.policy
    _, script = (content for tag, content in page.inline if tag == "script")
    (style,) = (content for tag, content in page.inline if tag == "style")
    for content in (style, script):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in page.policy


def test_anomalous_images_come_first_then_by_score_then_what_cannot_be_read(page: Page) -> None:
    columns = page.data["columns"]
    scores = columns["score"]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert scores[3] is None
    assert columns["name"][3].endswith("note.png")
    assert (columns["error_kind"][3], columns["error_detail"][3]) == (
        "unsupported",
        "this is not an image in a known format",
    )
    assert "1unreadable: 1 unsupported" in re.sub(r"\s*\n\s*", "", page.text)
    assert "3without a decision" in re.sub(r"\s*\n\s*", "", page.text)


def test_an_image_that_is_gone_by_now_is_a_row_without_a_picture(page: Page) -> None:
    names = page.data["columns"]["name"]
    with_picture = {names[int(place)] for place in page.data["pictures"]}
    assert with_picture == {name for name in names if not name.endswith(("gone.png", "note.png"))}
    assert all(picture["size"] == [60, 40] for picture in page.data["pictures"].values())


def test_undefined_metrics_are_a_dash_and_both_definitions_of_aupro_are_named(page: Page) -> None:
    assert '<th scope="col">AUPRO (official)</th><th scope="col">AUPRO (standard)</th>' in page.html
    assert (
        "<td>0.500</td><td>0.250</td><td>–</td><td>–</td><td>0.125</td><td>0.375</td><td>–</td><td>0.750</td>"
        in page.html
    )


@pytest.mark.parametrize(("bound", "value"), [("LISTED", 1), ("NAME_BYTES", 10)])
def test_what_is_not_listed_is_said(
    store: Store, scored: ModelVersion, monkeypatch: pytest.MonkeyPatch, source: Path, bound: str, value: int
) -> None:
    (source / HOSTILE).unlink()
    ingest_source.fn(store.uri, "parts", str(source.parent), "folders", False)
    monkeypatch.setattr(f"tasks.report.{bound}", value)
    uri = write_report.fn(store.uri, "run", scored, {"parts": []}, "A page")
    page = Page(Path(uri.removeprefix("file://")).read_text(encoding="utf-8"))
    assert "1 of 2 are listed" in page.text
    assert page.data["columns"]["name"] == ["note.png"]  # what cannot be read is looked at before what scores low


@pytest.mark.parametrize(
    ("bound", "value", "left"),
    [("LISTED", 1, "a"), ("LISTED", 2, "ab"), ("LISTED", 3, "abe"), ("LISTED", 5, "abcef"), ("NAME_BYTES", 5, "abcef")],
)
def test_anomalous_then_unreadable_images_are_listed_whatever_is_left_out(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int, left: str
) -> None:
    rows = pd.DataFrame({"uri": [f"s3://photos/{name}" for name in "abcdef"], "rank": [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]})
    monkeypatch.setattr(f"tasks.report.{bound}", value)
    assert "".join(named(first_rows(rows.set_index(np.array([3, 0, 5, 1, 4, 2]))))["name"]) == left


def test_no_more_pictures_than_the_page_can_hold() -> None:
    picture = Picture(1, 1, "x" * 30, "x" * 10, None, [])
    kept = within(100, [(0, picture), (1, None), (2, picture), (3, picture), (4, picture)])
    assert list(kept) == [0, 2]


def test_collections_and_an_empty_night_are_pages_too(store: Store, scored: ModelVersion, source: Path) -> None:
    ingest_source.fn(store.uri, "others", str(source.parent), "folders", False)
    both = write_report.fn(store.uri, "both", scored, {"parts": METRICS, "others": []}, "Two collections")
    assert both.endswith("/store/reports/both/index.html")
    page = Page(Path(both.removeprefix("file://")).read_text(encoding="utf-8"))
    assert page.data["groups"] == ["parts / parts"]
    empty = write_report.fn(store.uri, "empty", scored, {"others": []}, "Nothing new")
    data = Page(Path(empty.removeprefix("file://")).read_text(encoding="utf-8")).data
    assert (data["columns"]["name"], data["pictures"]) == ([], {})


def test_layers_are_of_one_image(tmp_path: Path, store: Store, bundle: Path, model: ModelVersion) -> None:
    """The photo, its heat by the absolute scale, and the outline of the ground truth where there is some."""
    for name in ("plain.png", "masked.png"):
        photo().save(tmp_path / name)
    mask = Image.new("L", (60, 40))
    mask.paste(255, (15, 10, 45, 30))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "labels.csv").write_text("image,label,mask\nplain.png,0,\nmasked.png,1,mask.png\n")
    ingest_source.fn(store.uri, "parts", str(tmp_path), "labels", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    outline = outline_of(store, ["parts"], model, 0)
    whole = records(with_rest(store, ["parts"], model, outline))
    rows = {row["uri"].rpartition("/")[2]: row for row in whole}
    config, grid = read_bundle_config(bundle), np.full((6, 6), 0.9, np.float32)
    plain, masked = (make_picture(rows[name], grid, config) for name in ("plain.png", "masked.png"))
    assert plain
    assert plain.truth is None
    assert masked
    assert masked.truth
    assert np.count_nonzero(decoded(masked.truth)[..., 3]) == 2 * 30 + 2 * 18
    assert decoded(plain.image).shape == (40, 60, 3)
    (tmp_path / "mask.png").unlink()
    unmasked = make_picture(rows["masked.png"], grid, config)
    assert unmasked
    assert (unmasked.truth, unmasked.heat) == (None, masked.heat)
    quiet = make_picture(rows["plain.png"], grid / 30, config)
    assert quiet
    assert decoded(plain.heat)[..., :3].mean() > 100 > 20 > decoded(quiet.heat)[..., :3].mean()


def decoded(data_uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))).convert()).astype(int)
