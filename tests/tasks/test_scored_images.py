"""Bad images are rows, awkward and huge ones are scored as they are seen."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from models.maps import map_at
from tasks import pixels, scoring
from tasks.images import LARGEST
from tasks.manifest import ingest_source, read_manifest, records
from tasks.shards import model_folder
from tasks.tables import MAPS, read_parts
from tests.tasks.conftest import photo, write_photos
from tests.tasks.test_images import BAD
from tests.tasks.test_scoring import ingest, read_scores, score


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_photos(tmp_path / "source", range(10))
    return tmp_path / "source"


def test_every_bad_image_is_a_row_with_its_reason_at_ingest_as_at_scoring(store, source, model) -> None:
    for name, (data, _) in BAD.items():
        (source / f"{name}.png").write_bytes(data)
    ingest_source.fn(store.uri, "parts", str(source), "flat", True)
    (source / "001.png").unlink()
    photo(77, 50, 50).save(source / "002.png")
    (source / "003.png").unlink()
    (source / "003.png").mkdir()
    score(store, model)
    reasons = {Path(row["uri"]).stem: (row["error_kind"], row["error_detail"]) for row in read_scores(store, model)}
    listed = read_manifest(store, "parts").rows
    at_ingest = {Path(row["uri"]).stem: (row["status"], row["status_detail"]) for row in records(listed)}
    for name, (_, kind) in BAD.items():
        assert reasons[name] == at_ingest[name]
        assert reasons[name][0] == kind
    assert [reasons[name][0] for name in ("001", "002", "003")] == ["missing", "changed", "changed"]
    assert [kind for name, (kind, _) in reasons.items() if name in ("000", "004", "009")] == [None] * 3
    assert len(reasons) == 10 + len(BAD)
    for row in read_scores(store, model):
        assert (row["score"] is None) == (row["error_kind"] is not None)
        assert (row["regions"] is None) == (row["error_kind"] is not None)


def awkward_images() -> dict[str, tuple[Image.Image, str]]:
    rgb, grey = photo(), photo().convert("L")
    exif = Image.Exif()
    exif[0x0112] = 8
    rgb_turned = rgb.copy()
    rgb_turned.info["exif"] = exif.tobytes()
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "grey.png": (grey, "PNG"), "sixteen.png": (sixteen, "PNG"), "sixteen.tiff": (sixteen, "TIFF"),
        "palette.png": (rgb.quantize(8), "PNG"), "alpha.png": (rgb.convert("RGBA"), "PNG"),
        "la.png": (grey.convert("LA"), "PNG"), "cmyk.jpg": (rgb.convert("CMYK"), "JPEG"),
        "bit.png": (grey.convert("1"), "PNG"),
        "turned.jpg": (rgb_turned, "JPEG"), "frames.gif": (rgb, "GIF"), "pages.tiff": (rgb, "TIFF"),
        "pixel.png": (rgb.crop((0, 0, 1, 1)), "PNG"),
        "line.png": (rgb.crop((0, 0, 60, 1)).resize((3000, 1)), "PNG"), "float.tiff": (grey.convert("F"), "TIFF"),
    }  # fmt: skip


def test_every_awkward_image_is_scored_with_a_mask_of_the_size_that_is_seen(
    store, tmp_path, model, monkeypatch
) -> None:
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: -1.0)  # everything is in the mask
    source, images = tmp_path / "awkward", awkward_images()
    source.mkdir()
    for name, (image, kind) in images.items():
        options = {"exif": image.info["exif"]} if "exif" in image.info else {}
        if name in ("frames.gif", "pages.tiff"):
            options = {"save_all": True, "append_images": [Image.new("RGB", image.size, "red")]}
        image.save(source / name, format=kind, **options)
    ingest_source.fn(store.uri, "parts", str(source), "flat", True)
    score(store, model)
    rows = {Path(row["uri"]).name: row for row in read_scores(store, model)}
    for row in records(read_manifest(store, "parts").rows):
        mask = Image.open(rows[Path(row["uri"]).name]["mask_uri"].removeprefix("file://"))
        assert (row["status"], row["width"], row["height"]) == ("ok", *mask.size), row["uri"]
    for name in ("sixteen.png", "sixteen.tiff", "la.png"):
        assert rows[name]["score"] == pytest.approx(rows["grey.png"]["score"], abs=1e-6)
    assert rows["alpha.png"]["score"] == pytest.approx(rows["pages.tiff"]["score"], abs=1e-6)
    for name, row in rows.items():
        image = images[name][0]
        size = image.size[::-1] if name == "turned.jpg" else image.size
        assert row["error_kind"] is None, name
        mask = Image.open(row["mask_uri"].removeprefix("file://"))
        assert (mask.mode, mask.size) == ("L", size), name
        assert row["regions"][0]["area"] == size[0] * size[1]


def test_regions_are_those_of_the_mask(store, source, model, monkeypatch) -> None:
    ingest(store, source)
    score(store, model)
    maps = read_parts(store, *model_folder("parts", model.partition, "maps"), schema=MAPS)
    grids = {row["image_id"]: np.frombuffer(row["values"], "<f4").reshape(6, 6) for row in maps.to_pylist()}
    middle = float(np.median(np.stack(list(grids.values()))))
    store.fs.rm(store.path("collections"), recursive=True)
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: middle)
    ingest(store, source)
    score(store, model)
    checked = 0
    for row in read_scores(store, model):
        if row["mask_uri"]:
            mask = np.asarray(Image.open(row["mask_uri"].removeprefix("file://")))
            assert set(np.unique(mask)) <= {0, 255}
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            assert len(row["regions"]) == count
            assert sum(region["area"] for region in row["regions"]) == (mask > 0).sum()
            heat = map_at(grids[row["image_id"]], *mask.shape, 96, 4.0)
            assert np.array_equal(mask > 0, heat > middle)
            for region in row["regions"]:
                box = np.s_[region["y"] : region["y"] + region["h"], region["x"] : region["x"] + region["w"]]
                inside = labels[box] == labels[np.unravel_index(np.argmax(heat == region["peak"]), heat.shape)]
                assert region["peak"] == heat[box][inside].max() > middle
                assert region["area"] == inside.sum()
                assert all(inside.any(axis=axis)[[0, -1]].all() for axis in (0, 1))  # the box is tight
            peaks = [region["peak"] for region in row["regions"]]
            assert peaks == sorted(peaks, reverse=True)
            checked += 1
    assert checked


def test_an_object_with_more_bytes_than_any_image_is_a_row_and_is_not_read(store, source, model) -> None:
    with (source / "video.png").open("wb") as file:
        file.truncate(LARGEST + 1)  # a hole: it takes no room
    ingest(store, source)
    score(store, model)
    kinds = {Path(row["uri"]).name: row["error_kind"] for row in read_scores(store, model)}
    assert kinds.pop("video.png") == "too_large"
    assert set(kinds.values()) == {None}


@pytest.mark.parametrize("huge", [True, False])
def test_huge_images_are_in_memory_one_at_a_time(huge: bool, store, source, model, monkeypatch) -> None:
    if huge:
        monkeypatch.setattr("tasks.images.HUGE", 100)
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: 0.0)  # every image gets a mask
    together: dict[str, list[int]] = {"to_square": [], "find_regions": []}
    for module, (name, seen) in zip((pixels, scoring), together.items(), strict=True):
        monkeypatch.setattr(module, name, counted(getattr(module, name), seen))
    ingest(store, source)
    score(store, model, 100)
    assert [max(seen) == 1 for seen in together.values()] == [huge, huge]
    assert [len(seen) for seen in together.values()] == [10, 10]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_scan_of_a_hundred_megapixels_is_scored_with_a_mask_of_its_size(store, tmp_path, model, monkeypatch) -> None:
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: 0.0)
    (tmp_path / "scans").mkdir()
    scan = np.zeros((10_000, 10_000), np.uint8)
    scan[2_000:3_000, 5_000:8_000] = 255
    Image.fromarray(scan).save(tmp_path / "scans/wafer.png", compress_level=1)
    ingest_source.fn(store.uri, "parts", str(tmp_path / "scans"), "flat", True)
    score(store, model)
    (listed,) = records(read_manifest(store, "parts").rows)
    assert (listed["status"], listed["width"], listed["height"], listed["mode"]) == ("ok", 10_000, 10_000, "L")
    (row,) = read_scores(store, model)
    assert (row["error_kind"], row["regions"][0]["area"]) == (None, scan.size)
    with Image.open(row["mask_uri"].removeprefix("file://")) as mask:
        assert mask.size == (10_000, 10_000)


def counted(function: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    """The function, noting at each call how many calls there are at that moment."""
    inside: list[None] = []

    def call(*arguments: Any) -> Any:
        inside.append(None)
        time.sleep(0.02)
        seen.append(len(inside))
        try:
            return function(*arguments)
        finally:
            inside.pop()

    return call
