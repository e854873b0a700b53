"""Exactly once, whatever dies: shards, their bytes, and a row for every bad image."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import ndimage

from tasks.manifest import ingest_source
from tasks.registry import ModelVersion
from tasks.scoring import Output, Shard, plan_shards, score_shard, scores_folder
from tasks.store import Store
from tasks.tables import MAPS, SCORES, read_parts
from tests.tasks.conftest import Registered, photo, write_photos

REGION = pa.struct(
    [("x", pa.int32()), ("y", pa.int32()), ("w", pa.int32()), ("h", pa.int32()), ("area", pa.int64()),
     ("peak", pa.float64())]
)  # fmt: skip
CONTRACT = {
    "image_id": pa.string(), "uri": pa.string(), "etag": pa.string(), "class_name": pa.string(), "score": pa.float64(),
    "decision": pa.string(), "threshold": pa.float64(), "mask_uri": pa.string(), "regions": pa.list_(REGION),
    "bundle_digest": pa.string(), "error_kind": pa.string(), "error_detail": pa.string(),
}  # fmt: skip


@pytest.fixture
def model(bundle: Path, registered: Registered) -> ModelVersion:
    """The bundle by its folder: scoring then needs no registry."""
    return ModelVersion(str(bundle), "bundle", "1", registered.model.digest)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_photos(tmp_path / "source", range(10))
    return tmp_path / "source"


def ingest(store: Store, source: Path) -> None:
    ingest_source.fn(store.uri, "parts", str(source), "flat", False)


def score(store: Store, model: ModelVersion, size: int = 4) -> list[Shard]:
    _, pending = plan_shards(store, "parts", model.partition, size)
    for shard in pending:
        score_shard.fn(store.uri, "parts", model, shard, "fp32")
    return pending


def read_scores(store: Store, model: ModelVersion) -> list[dict]:
    return read_parts(store, *scores_folder("parts", model.partition), schema=SCORES).to_pylist()


def written(store: Store) -> dict[str, bytes]:
    kinds = ("scores", "maps", "masks")
    return {
        f"{k}/{n}": store.read("collections", "parts", k, n)
        for k in kinds
        for n in store.find("collections", "parts", k)
    }


def test_scores_and_maps_are_the_tables_of_the_contract(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    part = store.path(*scores_folder("parts", model.partition), store.find(*scores_folder("parts", model.partition))[0])
    schema = pq.read_schema(part)
    assert dict(zip(schema.names, schema.types, strict=True)) == CONTRACT
    rows, maps = (
        read_scores(store, model),
        read_parts(store, *scores_folder("parts", model.partition, "maps"), schema=MAPS),
    )
    assert len(rows) == len(maps) == 10
    assert all(0 <= row["score"] <= 1 and row["bundle_digest"] == model.digest for row in rows)
    assert all(row["decision"] is None and row["error_kind"] is None for row in rows)
    for row in maps.to_pylist():
        assert len(row["values"]) == 4 * row["rows"] * row["cols"] == 4 * 36
        assert 0 <= np.frombuffer(row["values"], "<f4").min() <= np.frombuffer(row["values"], "<f4").max() <= 1


def test_what_is_scored_is_not_planned_again_and_new_images_are_a_shard(store, source, model) -> None:
    ingest(store, source)
    assert [shard.length for shard in score(store, model)] == [4, 4, 2]
    assert score(store, model) == []
    write_photos(source, range(20, 23))
    ingest(store, source)
    assert [shard.length for shard in score(store, model)] == [3]
    assert len({row["image_id"] for row in read_scores(store, model)}) == len(read_scores(store, model)) == 13


def test_a_run_that_was_killed_ends_with_the_same_bytes(store, source, model, monkeypatch) -> None:
    ingest(store, source)
    score(store, model)
    undisturbed = written(store)
    store.fs.rm(store.path("collections", "parts", "scores"), recursive=True)
    write, wrote = Output.write_shard, []

    def die_before_the_second_commit(self: Output, kind: str, shard: Shard, data: bytes) -> str:
        if kind == "scores":
            wrote.append(shard)
            if len(wrote) == 2:
                raise SystemExit("killed")
        return write(self, kind, shard, data)

    monkeypatch.setattr(Output, "write_shard", die_before_the_second_commit)
    with pytest.raises(SystemExit):
        score(store, model)
    monkeypatch.undo()
    assert [shard.index for shard in score(store, model)] == [1, 2]
    assert written(store) == undisturbed


def test_two_runs_at_once_do_no_harm(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    undisturbed = written(store)
    for kind in ("scores", "maps", "masks"):
        if store.exists("collections", "parts", kind):
            store.fs.rm(store.path("collections", "parts", kind), recursive=True)
    _, pending = plan_shards(store, "parts", model.partition, 4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda shard: score_shard.fn(store.uri, "parts", model, shard, "fp32"), pending * 2))
    assert written(store) == undisturbed


def test_a_begun_shard_size_is_kept(store, source, model) -> None:
    ingest(store, source)
    _, pending = plan_shards(store, "parts", model.partition, 4)
    score_shard.fn(store.uri, "parts", model, pending[0], "fp32")
    _, pending = plan_shards(store, "parts", model.partition, 100)
    assert [(shard.size, shard.index) for shard in pending] == [(4, 1), (4, 2)]


def test_a_score_does_not_depend_on_its_shard(tmp_path, source, model) -> None:
    scores = []
    for size in (1, 3, 100):
        store = Store(str(tmp_path / f"store-{size}"))
        ingest(store, source)
        score(store, model, size)
        scores.append([row["score"] for row in sorted(read_scores(store, model), key=lambda row: row["uri"])])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6, rtol=0)
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-6, rtol=0)


# --- bad and awkward images -------------------------------------------------------------------------------------------


def test_every_bad_image_is_a_row_with_its_reason(store, source, model) -> None:
    (source / "empty.png").touch()
    (source / "note.png").write_text("a note")
    (source / "drawing.svg").write_text("<svg/>")
    (source / "cut.png").write_bytes((source / "000.png").read_bytes()[:300])
    ingest(store, source)
    (source / "001.png").unlink()
    photo(77, 50, 50).save(source / "002.png")
    score(store, model)
    reasons = {Path(row["uri"]).name: row["error_kind"] for row in read_scores(store, model)}
    assert {name: kind for name, kind in reasons.items() if kind} == {
        "empty.png": "empty", "note.png": "unsupported", "drawing.svg": "unsupported", "cut.png": "corrupt",
        "001.png": "missing", "002.png": "changed",
    }  # fmt: skip
    assert len(reasons) == 14
    assert all(row["score"] is None for row in read_scores(store, model) if row["error_kind"])


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
        "turned.jpg": (rgb_turned, "JPEG"), "frames.gif": (rgb, "GIF"), "pixel.png": (rgb.crop((0, 0, 1, 1)), "PNG"),
        "line.png": (rgb.crop((0, 0, 60, 1)).resize((3000, 1)), "PNG"), "float.tiff": (grey.convert("F"), "TIFF"),
    }  # fmt: skip


def test_every_awkward_image_is_scored_with_a_mask_of_the_size_that_is_seen(
    store, tmp_path, model, monkeypatch
) -> None:
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: -1.0)  # everything is in the mask
    source = tmp_path / "awkward"
    source.mkdir()
    for name, (image, kind) in awkward_images().items():
        image.save(source / name, format=kind, **({"exif": image.info["exif"]} if "exif" in image.info else {}))
    ingest(store, source)
    score(store, model)
    for row in read_scores(store, model):
        name = Path(row["uri"]).name
        image = awkward_images()[name][0]
        size = image.size[::-1] if name == "turned.jpg" else image.size
        assert row["error_kind"] is None, name
        mask = Image.open(row["mask_uri"].removeprefix("file://"))
        assert (mask.mode, mask.size) == ("L", size), name
        assert row["regions"][0]["area"] == size[0] * size[1]


def test_regions_are_those_of_the_mask(store, source, model, monkeypatch) -> None:
    ingest(store, source)
    score(store, model)
    maps = read_parts(store, *scores_folder("parts", model.partition, "maps"), schema=MAPS)
    middle = float(np.median(np.concatenate([np.frombuffer(v, "<f4") for v in maps["values"].to_pylist()])))
    store.fs.rm(store.path("collections"), recursive=True)
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: middle)
    ingest(store, source)
    score(store, model)
    checked = 0
    for row in read_scores(store, model):
        if row["mask_uri"]:
            mask = np.asarray(Image.open(row["mask_uri"].removeprefix("file://")))
            assert set(np.unique(mask)) <= {0, 255}
            _, count = ndimage.label(mask, structure=np.ones((3, 3)))
            assert len(row["regions"]) == count
            assert sum(region["area"] for region in row["regions"]) == (mask > 0).sum()
            peaks = [region["peak"] for region in row["regions"]]
            assert peaks == sorted(peaks, reverse=True)
            assert min(peaks) > middle
            checked += 1
    assert checked
