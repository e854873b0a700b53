"""Exactly once, whatever dies: shards, their bytes, and a row for every bad image."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import ndimage

from models.maps import map_at
from tasks import scoring
from tasks.errors import InputError
from tasks.images import LARGEST
from tasks.manifest import ingest_source, read_manifest, records
from tasks.registry import ModelVersion
from tasks.scoring import Shard, check_done, part_name, plan_shards, score_shard, scores_folder
from tasks.store import Store
from tasks.tables import MAPS, SCORES, read_parquet, read_parts, to_parquet
from tests.tasks.conftest import photo, write_photos
from tests.tasks.test_images import BAD

REGION = pa.struct(
    [("x", pa.int32()), ("y", pa.int32()), ("w", pa.int32()), ("h", pa.int32()), ("area", pa.int64()),
     ("peak", pa.float64())]
)  # fmt: skip
CONTRACT = {
    "image_id": pa.string(), "uri": pa.string(), "etag": pa.string(), "class_name": pa.string(), "score": pa.float64(),
    "decision": pa.string(), "threshold": pa.float64(), "mask_uri": pa.string(), "regions": pa.list_(REGION),
    "bundle_digest": pa.string(), "error_kind": pa.string(), "error_detail": pa.string(),
    "p_value": pa.float64(),
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_photos(tmp_path / "source", range(10))
    return tmp_path / "source"


def ingest(store: Store, source: Path) -> None:
    ingest_source.fn(store.uri, "parts", str(source), "flat", False)


def score(store: Store, model: ModelVersion, size: int = 4, precision: str = "fp32") -> list[Shard]:
    _, pending = plan_shards(store, "parts", model.partition, size)
    for shard in pending:
        score_shard.fn(store.uri, "parts", model, shard, precision)
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


def remove_results(store: Store) -> None:
    for kind in ("scores", "maps", "masks"):
        if store.exists("collections", "parts", kind):
            store.fs.rm(store.path("collections", "parts", kind), recursive=True)


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


@pytest.mark.parametrize("kind", ["masks", "maps", "scores"])
def test_a_run_that_was_killed_ends_with_the_same_bytes(kind: str, store, source, model, monkeypatch) -> None:
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: -1.0)  # a mask for every image
    ingest(store, source)
    score(store, model)
    undisturbed = written(store)
    remove_results(store)
    method = "create" if kind == "scores" else "write"
    write, left = getattr(Store, method), {"masks": 6, "maps": 1, "scores": 1}

    def die_in_the_second_shard(self: Store, data: bytes, *parts: str) -> Any:
        if kind in parts:
            left[kind] -= 1
            if left[kind] < 0:
                raise SystemExit("killed")
        return write(self, data, *parts)

    with monkeypatch.context() as context:
        context.setattr(Store, method, die_in_the_second_shard)
        with pytest.raises(SystemExit):
            score(store, model)
    assert len(store.find(*scores_folder("parts", model.partition))) == 1
    assert [shard.index for shard in score(store, model)] == [1, 2]
    assert written(store) == undisturbed


def test_a_shard_whose_storage_fails_is_not_committed(store, source, model, monkeypatch) -> None:
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda config: -1.0)
    ingest(store, source)

    def full(self: Store, data: bytes, *parts: str) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Store, "write", full)
        with pytest.raises(OSError, match="No space left"):
            score(store, model)
    assert len(plan_shards(store, "parts", model.partition, 4)[1]) == 3


def test_scoring_again_from_nothing_gives_the_same_bytes(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    first = written(store)
    remove_results(store)
    score(store, model)
    assert written(store) == first != {}


def test_parts_say_in_which_precision_they_were_scored_and_are_the_same_bytes_again(store, source, model) -> None:
    ingest(store, source)
    score(store, model, precision="bf16")
    first = written(store)
    folder = scores_folder("parts", model.partition)
    parts = [read_parquet(store, *folder, name) for name in store.find(*folder)]
    assert [part.schema.metadata[b"precision"] for part in parts] == [b"bf16"] * 3
    remove_results(store)
    score(store, model, precision="bf16")
    assert written(store) == first


def test_another_precision_is_refused_once_a_shard_is_done(store, source, model) -> None:
    ingest(store, source)
    shards, pending = plan_shards(store, "parts", model.partition, 4)
    check_done(store, "parts", model, "bf16", shards, pending)
    score_shard.fn(store.uri, "parts", model, pending[1], "bf16")
    begun = plan_shards(store, "parts", model.partition, 4)
    check_done(store, "parts", model, "bf16", *begun)
    with pytest.raises(InputError, match="has scored 'parts' in bf16, its scores in fp32 would mix"):
        check_done(store, "parts", model, "fp32", *begun)


def test_parts_from_before_precision_was_recorded_are_fp32(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    folder = scores_folder("parts", model.partition)
    for name in store.find(*folder):
        table = read_parquet(store, *folder, name)
        store.write(to_parquet(table.replace_schema_metadata(None)), *folder, name)
        assert not read_parquet(store, *folder, name).schema.metadata
    plan = plan_shards(store, "parts", model.partition, 4)
    check_done(store, "parts", model, "fp32", *plan)
    with pytest.raises(InputError, match="in fp32, its scores in bf16"):
        check_done(store, "parts", model, "bf16", *plan)


def test_scores_of_another_bundle_under_the_same_number_are_not_taken_for_ours(store, source, model) -> None:
    """A registry that begins anew beside the scores counts from 1 again."""
    ingest(store, source)
    score(store, model)
    plan = plan_shards(store, "parts", model.partition, 4)
    check_done(store, "parts", model, "fp32", *plan)
    with pytest.raises(InputError, match="another model of that name"):
        check_done(store, "parts", replace(model, digest="0" * 64), "fp32", *plan)


def test_two_runs_at_once_do_no_harm(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    undisturbed = written(store)
    remove_results(store)
    _, pending = plan_shards(store, "parts", model.partition, 4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda shard: score_shard.fn(store.uri, "parts", model, shard, "fp32"), pending * 2))
    assert written(store) == undisturbed


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_shard_that_another_run_has_committed_meanwhile_is_not_written_over(
    place: str, s3, store, source, model
) -> None:
    target = store if place == "disk" else Store("s3://photos/store")
    ingest(target, source)
    _, pending = plan_shards(target, "parts", model.partition, 100)
    score_shard.fn(target.uri, "parts", model, pending[0], "fp32")
    first = target.read(*scores_folder("parts", model.partition), part_name(pending[0]))
    score_shard.fn(target.uri, "parts", model, pending[0], "bf16")  # planned before the other was done
    assert target.read(*scores_folder("parts", model.partition), part_name(pending[0])) == first


def score_all(store: str, model: ModelVersion) -> None:
    score(Store(store), model)


def test_two_processes_at_once_do_no_harm(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    undisturbed = written(store)
    remove_results(store)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(score_all, store.uri, model) for _ in range(2)]:
            done.result(timeout=120)
    assert written(store) == undisturbed


def test_a_new_label_is_nothing_to_score(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    ingest_source.fn(store.uri, "parts", str(source), "folders", False)
    shards, pending = plan_shards(store, "parts", model.partition, 4)
    assert (sum(shard.length for shard in shards), pending) == (10, [])


def test_another_model_scores_everything_again(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    assert len(plan_shards(store, "parts", "bundle.v2", 4)[1]) == 3


def test_a_bucket_is_scored_as_a_folder_is(memory: str, store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    bucket, images = Store(f"{memory}/store"), Store(f"{memory}/images")
    for path in source.iterdir():
        images.write(path.read_bytes(), path.name)
    ingest_source.fn(bucket.uri, "parts", images.uri, "flat", False)
    score(bucket, model)
    local, remote = (sorted(read_scores(s, model), key=lambda row: row["uri"]) for s in (store, bucket))
    assert [row["score"] for row in remote] == [row["score"] for row in local]
    assert all(row["uri"].startswith("memory:///") for row in remote)
    assert plan_shards(bucket, "parts", model.partition, 4)[1] == []


def test_a_planned_shard_size_is_kept(store, source, model) -> None:
    """Two runs that begin together, at sizes of their own, would else score images twice."""
    ingest(store, source)
    _, pending = plan_shards(store, "parts", model.partition, 4)
    assert plan_shards(store, "parts", model.partition, 100)[1] == pending
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


def test_a_score_does_not_depend_on_an_unreadable_neighbour(tmp_path, source, model) -> None:
    scores = []
    for name in ("whole", "damaged"):
        store = Store(str(tmp_path / name))
        if name == "damaged":
            for number in range(4):
                (source / f"00{number}.png").write_text("no image any more")  # the whole first shard
            (source / "005.png").write_text("no image any more")
        ingest(store, source)
        score(store, model)
        scores.append({Path(row["uri"]).name: row["score"] for row in read_scores(store, model)})
    assert [name for name, value in scores[1].items() if value is None] == [f"00{n}.png" for n in (0, 1, 2, 3, 5)]
    for name, value in scores[1].items():
        assert value is None or value == pytest.approx(scores[0][name], abs=1e-6)


# --- bad and awkward images -------------------------------------------------------------------------------------------


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
    maps = read_parts(store, *scores_folder("parts", model.partition, "maps"), schema=MAPS)
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
    for name, seen in together.items():
        monkeypatch.setattr(f"tasks.scoring.{name}", counted(getattr(scoring, name), seen))
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
