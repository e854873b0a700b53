"""Exactly once, whatever dies: shards and their bytes. Images that are bad or awkward: test_scored_images."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import InputError
from tasks.manifest import ingest_source
from tasks.pixels import load_pixels
from tasks.registry import ModelVersion, open_detector
from tasks.scoring import mask_png, score_shard
from tasks.shards import ScoredShard, Shard, check_done, model_folder, part_name, plan_shards
from tasks.store import Store
from tasks.tables import MAPS, SCORES, read_parquet, read_parts, to_parquet
from tests.tasks.conftest import WRITE_ONLY, write_photos

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
    return read_parts(store, *model_folder("parts", model.partition), schema=SCORES).to_pylist()


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
    part = store.path(*model_folder("parts", model.partition), store.find(*model_folder("parts", model.partition))[0])
    schema = pq.read_schema(part)
    assert dict(zip(schema.names, schema.types, strict=True)) == CONTRACT
    rows, maps = (
        read_scores(store, model),
        read_parts(store, *model_folder("parts", model.partition, "maps"), schema=MAPS),
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
    assert len(store.find(*model_folder("parts", model.partition))) == 1
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
    folder = model_folder("parts", model.partition)
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


def test_of_runs_that_begin_together_in_other_precisions_one_goes_on(store, source, model) -> None:
    ingest(store, source)
    _, pending = plan_shards(store, "parts", model.partition, 4)
    score_shard.fn(store.uri, "parts", model, pending[0], "bf16")
    with pytest.raises(InputError, match="has scored 'parts' in bf16, its scores in fp32 would mix"):
        score_shard.fn(store.uri, "parts", model, pending[1], "fp32")
    assert store.find(*model_folder("parts", model.partition)) == [part_name(pending[0])]
    assert store.find(*model_folder("parts", model.partition, "maps")) == [part_name(pending[0])]


def test_a_precision_that_was_settled_before_anything_was_done_is_named_with_its_file(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    remove_results(store)
    plan = plan_shards(store, "parts", model.partition, 4)
    check_done(store, "parts", model, "fp32", *plan)
    with pytest.raises(InputError, match=r"is to score 'parts' in fp32, says file:.*/precision\.txt"):
        check_done(store, "parts", model, "bf16", *plan)
    Path(store.path("collections/parts/plans", f"model={model.partition}", "precision.txt")).unlink()
    check_done(store, "parts", model, "bf16", *plan)


def test_parts_from_before_precision_was_recorded_are_fp32(store, source, model) -> None:
    ingest(store, source)
    score(store, model)
    folder = model_folder("parts", model.partition)
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
    place: str, s3, store, source, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a run that begins with it later, nor by one that was at it all the while."""
    target = store if place == "disk" else Store("s3://photos/store")
    ingest(target, source)
    _, pending = plan_shards(target, "parts", model.partition, 100)
    first = dict[str, bytes]()

    def the_other_is_first(*_: Any) -> None:
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr("tasks.scoring.check_source", lambda *_: None)
            undisturbed.setattr("tasks.scoring.mask_png", mask_png)
            score_shard.fn(target.uri, "parts", model, pending[0], "fp32")
        first.update(written(target))

    monkeypatch.setattr("tasks.scoring.check_source", the_other_is_first)
    monkeypatch.setattr("tasks.scoring.map_threshold", lambda _: -1.0)  # a mask for every image
    monkeypatch.setattr("tasks.scoring.mask_png", lambda _: b"ours")
    late = score_shard.fn(target.uri, "parts", model, pending[0], "fp32")
    later = score_shard.fn(target.uri, "parts", model, pending[0], "fp32")
    assert late == later == ScoredShard(pending[0].name, 10, {}, {})
    assert sum(name.startswith("masks/") for name in first) == 10
    assert written(target) == first


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


def test_a_source_that_is_out_of_reach_is_not_scored_as_missing(store: Store, source: Path, model) -> None:
    """A night later it may be back; images that an ingest found deleted stay missing."""
    ingest(store, source)
    source.rename(source.with_name("away"))
    with pytest.raises(
        FileNotFoundError, match=r"none of the 4 images can be found, file://.*: is their source in reach"
    ):
        score(store, model)
    assert read_scores(store, model) == []
    source.with_name("away").rename(source)
    for path in source.glob("*.png"):
        path.unlink()
    write_photos(source, range(20, 21))
    ingest(store, source)
    score(store, model)
    assert sorted(str(row["error_kind"]) for row in read_scores(store, model)) == ["None"] + ["missing"] * 10


def test_a_shard_of_names_that_lead_to_no_file_is_committed(store: Store, tmp_path: Path, model) -> None:
    """Their folder is in reach, and an ingest will find them there every night."""
    for number in range(3):
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / f"links/{number}.png").symlink_to("nowhere")
    ingest(store, tmp_path / "links")
    score(store, model)
    assert [row["error_kind"] for row in read_scores(store, model)] == ["missing"] * 3


def test_links_into_a_folder_that_is_out_of_reach_are_not_scored_as_missing(
    store: Store, source: Path, tmp_path: Path, model
) -> None:
    (tmp_path / "links").mkdir()
    for path in source.glob("*.png"):
        (tmp_path / "links" / path.name).symlink_to(path)
    ingest(store, tmp_path / "links")
    source.rename(source.with_name("away"))
    with pytest.raises(FileNotFoundError, match="is their source in reach"):
        score(store, model)
    assert read_scores(store, model) == []


def test_a_source_that_goes_away_while_a_shard_is_read_is_not_scored_as_missing(
    store: Store, source: Path, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(store, source)

    def read_half(row: dict[str, Any], image_size: int) -> Any:
        if row["uri"].endswith("005.png") and source.exists():
            source.rename(source.with_name("away"))
        return load_pixels(row, image_size)

    monkeypatch.setattr("tasks.pixels.load_pixels", read_half)
    monkeypatch.setattr("tasks.scoring.READERS", 1)
    with pytest.raises(FileNotFoundError, match=r"000\.png was there and is not any more"):
        score(store, model, size=100)
    assert read_scores(store, model) == []


def test_objects_that_a_bucket_has_no_more_are_missing(s3, source: Path, model) -> None:
    """Their prefix may never be listed again, and no ingest note that they were deleted."""
    store, bucket = Store("s3://photos/store"), Store("s3://photos/2026-11-24")
    for path in source.glob("*.png"):
        bucket.write(path.read_bytes(), path.name)
    ingest_source.fn(store.uri, "parts", bucket.uri, "flat", False)
    bucket.fs.rm("photos/2026-11-24", recursive=True)
    score(store, model)
    assert [row["error_kind"] for row in read_scores(store, model)] == ["missing"] * 10


def test_an_image_that_was_missing_for_a_moment_is_scored(store: Store, source: Path, model, monkeypatch) -> None:
    """A row would say for ever that it was missing."""
    ingest(store, source)
    (source / "005.png").rename(source / "aside")

    def read_and_bring_back(row: dict[str, Any], image_size: int) -> Any:
        found = load_pixels(row, image_size)
        if row["uri"].endswith("005.png") and (source / "aside").exists():
            (source / "aside").rename(source / "005.png")
        return found

    monkeypatch.setattr("tasks.pixels.load_pixels", read_and_bring_back)
    with pytest.raises(FileNotFoundError, match=r"005\.png could not be found and is there again"):
        score(store, model, size=100)
    score(store, model, size=100)
    assert [row["error_kind"] for row in read_scores(store, model)] == [None] * 10


@pytest.mark.skipif(not WRITE_ONLY.exists(), reason="the kernel has no such file")
@pytest.mark.parametrize("refused", [1, 2])
def test_a_file_without_rights_is_a_row_and_a_folder_of_them_is_not(
    refused: int, store: Store, tmp_path: Path, model
) -> None:
    """A night under another user must not say for ever that nothing could be read."""
    (tmp_path / "links").mkdir()
    for number in range(refused):
        (tmp_path / f"links/{number}.png").symlink_to(WRITE_ONLY)
    ingest(store, tmp_path / "links")
    if refused == 1:
        score(store, model)
    else:
        with pytest.raises(PermissionError, match="may not be read, nor anything else"):
            score(store, model)
    assert [row["error_kind"] for row in read_scores(store, model)] == ["forbidden"] * (refused == 1)


def test_what_a_model_says_that_is_no_number_is_not_committed(store: Store, source: Path, model, monkeypatch) -> None:
    """A NaN would be decided as normal, and be in the next calibration's reference."""
    ingest(store, source)
    detector = open_detector(store, model)
    detector.text_features = detector.text_features * float("nan")
    monkeypatch.setattr("tasks.scoring._load_detector", lambda *_: detector)
    with pytest.raises(RuntimeError, match=r"000\.png is no number"):
        score(store, model)
    assert read_scores(store, model) == []
