"""Exports say what the scores table says, in files that the tools they are for can read."""

import base64
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from models import load_detector
from models.maps import map_at
from tasks.errors import InputError
from tasks.exports import ExportFormat, ExportSummary, export_collection
from tasks.manifest import ingest_source
from tasks.registry import ModelVersion
from tasks.scored import common_folder
from tasks.scoring import score_shard
from tasks.shards import model_folder, plan_shards
from tasks.store import Store
from tasks.tables import SCORES, read_parquet, read_parts, to_parquet
from tasks.thresholds import ClassThreshold, Thresholds, write_thresholds
from tests.tasks.conftest import photo

HOSTILE = 'ein "Bild" <b>\n\u2028&\'.png'
PHOTOS = {HOSTILE: (40, 60), "long.png": (20, 90), "tall.png": (50, 30), "wide.png": (30, 70), "other.png": (40, 60)}


class Exported(NamedTuple):
    """A scored collection: rows by name, and the names of its two images without a mask, of which one is gone by now."""

    store: Store
    model: ModelVersion
    rows: dict[str, dict[str, Any]]
    quiet: str
    gone: str

    def export(self, form: ExportFormat, output: str | None = None) -> ExportSummary:
        return export_collection.fn(self.store.uri, "parts", self.model, form, output)

    def text(self, form: ExportFormat) -> str:
        return Path(self.export(form).output.removeprefix("file://")).read_text(encoding="utf-8")

    def mask(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(self.rows[name]["mask_uri"].removeprefix("file://"))) > 0


def calibrate(store: Store, model: ModelVersion) -> list[str]:
    """Thresholds under which three images have a mask; the names of the two others. The turned photo is none of these."""
    detector = load_detector(model.uri)
    images = {name: photo(number, *size) for number, (name, size) in enumerate(PHOTOS.items())}
    found = {name: detector.score_grids(detector.preprocess(image).unsqueeze(0)) for name, image in images.items()}
    peaks = {name: float(map_at(grid[0], *PHOTOS[name], 96, 4.0).max()) for name, (_, grid) in found.items()}
    quiet = sorted(peaks, key=lambda name: peaks[name])
    threshold = ClassThreshold(
        99, float(np.median([s for s, _ in found.values()])), (peaks[quiet[1]] + peaks[quiet[2]]) / 2
    )
    thresholds = Thresholds("parts", model.uri, model.digest, "of the tests", 0, 0.5, {"parts": threshold})
    write_thresholds(store, "parts", model.partition, thresholds)
    return quiet[:2]


@pytest.fixture
def exported(store: Store, tmp_path: Path, model: ModelVersion) -> Exported:
    folder = tmp_path / "source" / "line 4"
    folder.mkdir(parents=True)
    for number, (name, size) in enumerate(PHOTOS.items()):
        photo(number, *size).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(7, 24, 36).save(folder / "turned.jpg", exif=turned)
    (folder / "note.png").write_text("a note")
    quiet, gone = calibrate(store, model)
    ingest_source.fn(store.uri, "parts", str(folder.parent), "flat", False)
    for shard in plan_shards(store, "parts", model.partition, 3)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    (folder / gone).unlink()
    table = read_parts(store, *model_folder("parts", model.partition), schema=SCORES)
    rows = {row["uri"].rpartition("/")[2]: row for row in table.to_pylist()}
    assert sum(row["mask_uri"] is not None for row in rows.values()) >= 3
    assert {row["decision"] for row in rows.values()} == {"normal", "anomalous", None}
    return Exported(store, model, rows, quiet, gone)


def test_coco_regions_are_those_of_the_masks(exported: Exported, tmp_path: Path) -> None:
    text = exported.text("coco")
    (tmp_path / "coco.json").write_text(text)
    coco = COCO(str(tmp_path / "coco.json"))
    assert {image["file_name"] for image in coco.imgs.values()} == {*PHOTOS, "turned.jpg"} - {exported.gone}
    for number, image in coco.imgs.items():
        row = exported.rows[image["file_name"]]
        for fact in ("score", "decision", "threshold", "p_value"):
            assert image[fact] == row[fact]
        annotations = coco.imgToAnns[number]
        assert [(*a["bbox"], a["area"]) for a in annotations] == [
            tuple(r[key] for key in ("x", "y", "w", "h", "area")) for r in row["regions"]
        ]
        assert [a["score"] for a in annotations] == [r["peak"] for r in row["regions"]]  # one layer: a scale of 1
        masks = [coco.annToMask(a) for a in annotations]
        assert [mask.sum() for mask in masks] == [a["area"] for a in annotations]
        if row["mask_uri"]:
            assert np.array_equal(np.add.reduce(masks), exported.mask(image["file_name"]))
        else:
            assert not annotations
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["anomaly"]


def test_coco_knows_sizes_and_names_what_cannot_be_read(exported: Exported) -> None:
    content = json.loads(exported.text("coco"))
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    assert sizes == {name: size for name, size in PHOTOS.items() if name != exported.gone} | {"turned.jpg": (36, 24)}
    reasons = {image["file_name"]: image["error_kind"] for image in content["unreadable"]}
    assert reasons == {"note.png": "unsupported", exported.gone: "missing"}


def test_sizes_that_the_manifest_knows_need_no_image(exported: Exported, tmp_path: Path) -> None:
    ingest_source.fn(exported.store.uri, "parts", str(tmp_path / "source"), "flat", True)
    for name in PHOTOS:
        (tmp_path / "source/line 4" / name).unlink(missing_ok=True)
    content = json.loads(exported.text("coco"))
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}
    assert sizes[exported.quiet] == PHOTOS[exported.quiet]
    assert exported.gone not in sizes  # the second ingest no longer listed it
    assert exported.gone not in {image["file_name"] for image in content["unreadable"]}


def test_label_studio_shows_regions_in_percent_and_the_decision(exported: Exported) -> None:
    tasks = {task["data"]["image"].rpartition("/")[2]: task for task in json.loads(exported.text("label-studio"))}
    assert set(tasks) == set(exported.rows)
    for name, size in PHOTOS.items():
        row, (prediction,) = exported.rows[name], tasks[name]["predictions"]
        assert (prediction["score"], prediction["model_version"]) == (row["score"], "bundle.v1")
        *boxes, choice = prediction["result"]
        assert choice["value"] == {"choices": [row["decision"]]}
        for box, region in zip(boxes, row["regions"], strict=True):
            assert (box["original_height"], box["original_width"]) == size
            value = box["value"]
            pixels = [value["x"] * size[1], value["y"] * size[0], value["width"] * size[1], value["height"] * size[0]]
            assert np.divide(pixels, 100) == pytest.approx([region[key] for key in "xywh"])
    assert tasks["note.png"]["predictions"] == []
    assert tasks["note.png"]["data"]["error"].startswith("unsupported: ")


def test_the_labelling_config_lies_beside_the_tasks_and_names_their_parts(exported: Exported) -> None:
    output = Path(exported.export("label-studio").output.removeprefix("file://"))
    config = output.with_suffix(".xml").read_text(encoding="utf-8")
    parts = {
        part["from_name"]
        for task in json.loads(output.read_text())
        for p in task["predictions"]
        for part in p["result"]
    }
    assert parts == {"region", "decision"}
    assert all(f'name="{part}" toName="image"' in config for part in parts)


def test_lookout_lines_have_the_shape_of_its_answers(exported: Exported) -> None:
    lines = [json.loads(line) for line in exported.text("lookout").splitlines()]
    found = {line["Image"].rpartition("/")[2]: line for line in lines}
    assert len(lines) == len(found) == len(exported.rows)
    assert found["note.png"]["Error"]["Code"] == "unsupported"
    for name in PHOTOS:
        row, result = exported.rows[name], found[name]["DetectAnomalyResult"]
        assert result["Source"] == {"Type": "direct"}
        assert result["IsAnomalous"] == (row["decision"] == "anomalous")
        assert result["Confidence"] == pytest.approx(row["score"] if result["IsAnomalous"] else 1 - row["score"])
        shares = {a["Name"]: a["PixelAnomaly"]["TotalPercentageArea"] for a in result["Anomalies"]}
        assert result["Anomalies"][0]["Name"] == "background"
        assert sum(shares.values()) == pytest.approx(1)
        if name == exported.gone:
            assert "AnomalyMask" not in result
            continue
        mask = Image.open(io.BytesIO(base64.b64decode(result["AnomalyMask"])))
        assert mask.size == PHOTOS[name][::-1]
        red = np.asarray(mask.convert("RGB"))[..., 1] == 0x27
        assert red.mean() == pytest.approx(shares.get("anomaly", 0))
        if row["mask_uri"]:
            assert np.array_equal(red, exported.mask(name))
        assert result["Anomalies"][-1]["PixelAnomaly"]["Color"] == ("#D62728" if red.any() else "#FFFFFF")


def test_without_a_calibration_nothing_is_decided(store: Store, tmp_path: Path, model: ModelVersion) -> None:
    (tmp_path / "source").mkdir()
    photo().save(tmp_path / "source/a.png")
    ingest_source.fn(store.uri, "parts", str(tmp_path / "source"), "flat", False)
    for shard in plan_shards(store, "parts", model.partition)[1]:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    summary = export_collection.fn(store.uri, "parts", model, "lookout", str(tmp_path / "out.jsonl"))
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    result = json.loads(line)["DetectAnomalyResult"]
    assert (result["IsAnomalous"], result["Confidence"], summary.undecided) == (None, None, 1)


@pytest.mark.parametrize("form", ["coco", "label-studio", "lookout"])
def test_an_export_says_what_it_holds_and_goes_where_it_is_told(exported: Exported, form: ExportFormat, memory: str):
    summary = exported.export(form, f"{memory}/a b/export.json")
    assert summary.output == Store(memory).uri_of("a b", "export.json")
    assert (summary.images, summary.unreadable) == (7, 1)
    assert summary.anomalous == sum(row["decision"] == "anomalous" for row in exported.rows.values())
    assert summary.regions == sum(len(row["regions"] or ()) for row in exported.rows.values())
    again = Store(memory).read("a b", "export.json")
    assert again == Path(exported.export(form).output.removeprefix("file://")).read_bytes()


def test_scores_from_before_there_were_p_values_are_exported(exported: Exported) -> None:
    folder = model_folder("parts", exported.model.partition)
    for part in exported.store.find(*folder, suffix=".parquet"):
        table = read_parquet(exported.store, *folder, part).drop_columns("p_value")
        exported.store.write(to_parquet(table), *folder, part)
    assert {image["p_value"] for image in json.loads(exported.text("coco"))["images"]} == {None}


def test_what_cannot_be_exported_is_said(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: name the file"):
        exported.export("coco", "somewhere/")
    with pytest.raises(InputError, match="is a folder"):
        exported.export("coco", str(tmp_path))
    with pytest.raises(InputError, match=r"is a folder: name the file to write, e\.g\. s3://bucket/coco\.json"):
        exported.export("coco", "s3://bucket")
    other = ModelVersion(exported.model.uri, "bundle", "2", exported.model.digest)
    with pytest.raises(InputError, match="has scored nothing of 'parts'"):
        exported._replace(model=other).export("coco")
    masked = next(row["mask_uri"] for row in exported.rows.values() if row["mask_uri"])
    mask = Path(masked.removeprefix("file://"))
    for damaged in (b"", mask.read_bytes()[:-30]):
        mask.write_bytes(damaged)
        with pytest.raises(InputError, match=r"the mask file://.*\.png is damaged"):
            exported.export("coco")
    mask.unlink()
    with pytest.raises(InputError, match="was removed from the store"):
        exported.export("lookout")


@pytest.mark.parametrize(
    ("uris", "folder"),
    [
        (["s3://a/b/c.png"], "s3://a/b/"),
        (["s3://a/b/c.png", "s3://a/bc/d.png", "s3://a/b/e.png"], "s3://a/"),
        (["s3://a/x", "s3://a/x/y"], "s3://a/"),
    ],
)
def test_file_names_begin_below_what_all_have_in_common(uris: list[str], folder: str) -> None:
    assert common_folder(min(uris), max(uris)) == folder
