"""The page in a real browser: Debian's Chromium, headless."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from models.detector import bundle_digest
from tasks.manifest import image_id, ingest_source, list_parts, manifest_folder
from tasks.registry import ModelVersion
from tasks.report import write_report
from tasks.scoring import score_shard
from tasks.shards import model_folder, plan_shards
from tasks.store import Store
from tasks.tables import MANIFEST, SCORES, read_parquet, to_parquet, to_table
from tests.flows.conftest import free_port, serving
from tests.tasks.conftest import photo

pytestmark = pytest.mark.stack

HOSTILE = "<img src=x onerror=alert(1)>\u202e\"'&.png"
CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in which whatever it logs, pops up or asks for fails the test, at its end at the latest."""
    context, complaints, requests = browser.new_context(), list[str](), list[str]()

    def opened(uri: str, width: int = 1200, height: int = 900) -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(10_000)
        for event in ("console", "pageerror", "dialog"):
            page.on(event, lambda found: complaints.append(str(found)))
        page.on("request", lambda request: request.url.startswith("data:") or requests.append(request.url))
        page.goto(uri)
        expect(page.locator("#count")).not_to_be_empty()
        return page

    yield opened
    assert complaints == []
    assert len(requests) == 1
    context.close()


def focused(page: Page) -> int:
    return int(page.evaluate("document.activeElement.dataset.place ?? -1"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> ModelVersion:
    return ModelVersion(str(bundle), "bundle", "1", bundle_digest(bundle))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, model: ModelVersion) -> str:
    """The page of a small collection: two classes with six images each, two of them with hostile names, one is a text."""
    folder = tmp_path_factory.mktemp("parts")
    for number in range(12):
        under = folder / ("<u>nut" if number % 2 else "bolt") / "good"
        under.mkdir(parents=True, exist_ok=True)
        photo(number, 120, 160).save(under / (HOSTILE if number < 2 else f"{number:03d}.png"))
    (folder / "bolt/good/note.png").write_text("a note")
    store = Store(str(folder / "store"))
    ingest_source.fn(store.uri, "parts", str(folder), "folders", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    return write_report.fn(store.uri, "run", model, {"parts": []}, "Inspection of parts", "Scores have <moved>")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, model: ModelVersion) -> str:
    """The page of ten thousand images, of which a hundred and ten can still be read: noise, which nothing compresses."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(110):
        photo(number, 400, 400).save(folder / f"{number:05d}.png")
    store = Store(str(folder / "store"))
    ingest_source.fn(store.uri, "line-4", str(folder), "flat", False)
    for shard in plan_shards(store, "line-4", model.partition, 256)[1]:
        score_shard.fn(store.uri, "line-4", model, shard, "fp32")
    (part,) = list_parts(store, "line-4")
    first = read_parquet(store, *manifest_folder("line-4"), part).to_pylist()[0]
    found = store.find(*model_folder("line-4", model.partition), suffix=".parquet")
    score = read_parquet(store, *model_folder("line-4", model.partition), found[0]).to_pylist()[0]
    listed, scored = [], []
    for number in range(110, 10_000):
        uri = f"{first['uri'].rpartition('/')[0]}/2026-11-25/camera {number % 3}/IMG_{number:06d}.png"
        listed.append(first | {"uri": uri, "etag": "x", "image_id": image_id(uri, "x")})
        scored.append(
            score | {"uri": uri, "etag": "x", "image_id": image_id(uri, "x"), "mask_uri": None, "regions": [],
                     "score": number / 1e6, "decision": "normal", "threshold": 0.25, "p_value": 0.5}
        )  # fmt: skip
    named = "part-00001-000000000000"
    store.write(to_parquet(to_table(listed, MANIFEST)), *manifest_folder("line-4"), f"dt=2026-11-25/{named}.parquet")
    data = to_parquet(to_table(scored, SCORES))
    store.write(data, *model_folder("line-4", model.partition), f"{named}-20000-00000.parquet")
    return write_report.fn(store.uri, "run", model, {"line-4": []}, "Inspection of line 4")


def test_hostile_names_and_labels_are_shown_as_they_are(open_page: Callable[..., Page], parts: str) -> None:
    page = open_page(parts)
    expect(page.locator("#list .name", has_text=HOSTILE)).to_have_count(2)
    expect(page.locator(".notice[role=alert]")).to_have_text("Scores have <moved>")
    expect(page.locator(".classes tbody th").filter(has_text="<u>nut")).to_have_count(1)
    page.locator("#list button", has_text=HOSTILE).first.click()
    expect(page.locator("#detail-name")).to_have_text(HOSTILE)
    assert page.locator("u, img[src=x]").count() == 0


def test_the_page_opens_from_a_bucket(
    open_page: Callable[..., Page], parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with serving(port, "moto.server", "-H", "127.0.0.1", "-p", str(port)):
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store("s3://pages")
        store.fs.call_s3("create_bucket", Bucket="pages")
        store.write(Path(parts.removeprefix("file://")).read_bytes(), "reports", "run", "index.html")
        page = open_page(store.fs.sign(store.path("reports", "run", "index.html")))
        expect(page.locator("#list li")).to_have_count(13)


def test_filters_by_decision_class_and_text(open_page: Callable[..., Page], parts: str) -> None:
    page = open_page(parts)
    expect(page.locator("#count")).to_have_text("13 of 13 images")
    page.select_option("#group", label="<u>nut")
    expect(page.locator("#list li")).to_have_count(6)
    page.fill("#text", "011")
    expect(page.locator("#list .name")).to_have_text(["011.png"])
    page.fill("#text", "002")  # it is a bolt
    expect(page.locator("#none")).to_be_visible()
    page.fill("#text", "")
    page.select_option("#group", "")
    page.click(".tile.unreadable")
    expect(page.locator("#list .about")).to_have_text([re.compile("^unsupported: this is not an image")])
    expect(page.locator("#count")).to_have_text("1 of 13 images")


def test_the_keyboard_moves_opens_closes_and_helps(open_page: Callable[..., Page], parts: str) -> None:
    page = open_page(parts)
    for key, place in [
        ("j", 0),
        ("j", 1),
        ("ArrowRight", 2),
        ("k", 1),
        ("ArrowLeft", 0),
        ("ArrowDown", 4),
        ("ArrowUp", 0),
    ]:
        page.keyboard.press(key)
        assert focused(page) == place, key
    names = page.locator("#list .name").all_inner_texts()
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    for key, place in [("j", 1), ("ArrowDown", 2), ("k", 1), ("j", 2)]:
        page.keyboard.press(key)
        expect(page.locator("#detail-name")).to_have_text(names[place])
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator('#list [data-place="2"]')).to_be_focused()  # a dialog says later that it has closed
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("/")
    page.keyboard.type("jjj?")
    expect(page.locator("#text")).to_have_value("jjj?")
    expect(page.locator("#help")).to_be_hidden()


def test_heat_lies_over_the_image_and_can_be_taken_off(open_page: Callable[..., Page], parts: str) -> None:
    page = open_page(parts)
    frame = page.locator("#list .picture").first
    page.keyboard.press("r")
    with_heat = pixels(frame.screenshot())
    page.keyboard.press("h")
    expect(page.locator('[data-layer="heat"]')).not_to_be_checked()
    without = pixels(frame.screenshot())
    assert np.abs(without - with_heat).mean() > 10  # of 255, frame included
    page.keyboard.press("h")
    expect(page.locator('[data-layer="heat"]')).to_be_checked()
    assert np.abs(pixels(frame.screenshot()) - with_heat).mean() < 1


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def test_regions_lie_where_the_table_says(open_page: Callable[..., Page], parts: str) -> None:
    page = open_page(parts)
    found = page.evaluate(
        """() => { const { columns, pictures } = JSON.parse(document.getElementById("data").textContent);
        return [...document.querySelectorAll("#list .card")].map((card) => {
          const box = card.querySelector(".picture").getBoundingClientRect(), i = card.dataset.place;
          const drawn = [...card.querySelectorAll("rect")].map((r) => r.getBoundingClientRect());
          return pictures[i].regions.map(([x, y, w, h], n) => [(drawn[n].x - box.x) / box.width - x / pictures[i].size[0],
            (drawn[n].bottom - box.y) / box.height - (y + h) / pictures[i].size[1]]); }).flat(2); }"""
    )
    assert found == pytest.approx([0] * len(found), abs=0.02)


@pytest.mark.parametrize("width", [375, 1200])
def test_nothing_scrolls_sideways(open_page: Callable[..., Page], parts: str, width: int) -> None:
    page = open_page(parts, width, 720)
    for step in (
        lambda: None,
        lambda: page.click(".tile.unreadable"),
        lambda: page.locator("#list button").first.click(),
    ):
        step()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= width


def test_ten_thousand_images_are_one_page_below_six_megabytes(open_page: Callable[..., Page], many: str) -> None:
    assert Path(many.removeprefix("file://")).stat().st_size < 6_000_000
    page = open_page(many)
    expect(page.locator("#count")).to_have_text("10,000 of 10,000 images")
    made = page.locator("#list li").count()
    assert made < 500
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#list li").nth(made)).to_be_attached()
    page.fill("#text", "IMG_009999")
    expect(page.locator("#list .name")).to_have_count(1)
    page.keyboard.press("Escape")
    page.fill("#text", "")
    page.evaluate("document.activeElement.blur()")
    for _ in range(80):
        page.keyboard.press("j")
    assert focused(page) == 79  # further than what was made at first


def test_quiet_and_loud_pages_use_one_scale(open_page: Callable[..., Page], parts: str) -> None:
    page = open_page(parts)
    scale = page.locator(".scale i").screenshot()
    line = pixels(scale)[3]
    assert line[1].sum() < 60  # black at 0, light yellow at 1
    assert line[-2].sum() > 600
