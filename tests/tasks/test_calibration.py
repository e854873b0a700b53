"""Calibration: what it learns from scores and maps, and for which images it counts."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.detector import bundle_digest
from models.maps import map_at
from tasks.calibration import calibrate_collection
from tasks.errors import InputError
from tasks.manifest import digest_of, ingest_source, list_parts, manifest_folder
from tasks.nights import (
    COMPLETED,
    NightSummary,
    compare_with_reference,
    parts_told,
    read_night,
    record_night,
)
from tasks.registry import ModelVersion
from tasks.scored import read_outline, read_rest, stream_scored
from tasks.scoring import score_shard
from tasks.shards import ScoredShard, model_folder, plan_shards
from tasks.store import Store
from tasks.tables import MAPS, SCORES, read_parquet, read_parts
from tasks.thresholds import bundle_calibration, find_calibration
from tests.tasks.conftest import give_to_another_bundle, write_photos

RATE = 0.25  # needs three images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_photos(tmp_path / "source", range(8))
    return tmp_path / "source"


def night(store: Store, source: Path, model: ModelVersion, layout: str = "flat") -> list[ScoredShard]:
    ingest_source.fn(store.uri, "parts", str(source), layout, False)
    pending = plan_shards(store, "parts", model.partition, 4)[1]
    return [score_shard.fn(store.uri, "parts", model, shard, "fp32") for shard in pending]


def put_newest_part_on(store: Store, day: str) -> None:
    """As if it had been ingested on that day."""
    folder = store.path(*manifest_folder("parts"))
    newest = max(Path(folder).glob("dt=*/part-*.parquet"), key=lambda part: part.name)
    (Path(folder) / f"dt={day}").mkdir(exist_ok=True)
    newest.rename(Path(folder) / f"dt={day}" / newest.name)


def write_plain(folder: Path, numbers: range) -> None:
    """Images without a texture, which the detector scores otherwise than photos of noise."""
    for number in numbers:
        colour = np.random.default_rng(number).integers(100, 160, 3).tolist()
        Image.new("RGB", (60, 40), tuple(colour)).save(folder / f"{number:03d}.png")


def read_scores(store: Store, model: ModelVersion) -> dict[str, dict]:
    rows = read_parts(store, *model_folder("parts", model.partition), schema=SCORES).to_pylist()
    return {Path(row["uri"]).name: row for row in rows}


def read_maps(store: Store, model: ModelVersion) -> dict[str, np.ndarray]:
    rows = read_parts(store, *model_folder("parts", model.partition, "maps"), schema=MAPS).to_pylist()
    return {row["image_id"]: np.frombuffer(row["values"], "<f4").reshape(row["rows"], row["cols"]) for row in rows}


def written(store: Store) -> dict[str, bytes]:
    folders = ("scores", "maps", "masks")
    return {
        f"{f}/{n}": store.read("collections", "parts", f, n)
        for f in folders
        for n in store.find("collections", "parts", f)
    }


def test_later_images_are_decided_and_earlier_rows_stay_as_they_are(store, source, model) -> None:
    assert [shard.decisions for shard in night(store, source, model)] == [{}, {}]
    before = written(store)
    summary = calibrate_collection.fn(store.uri, "parts", model, 0.5)
    write_photos(source, range(20, 32))
    told = sum((Counter(shard.decisions) for shard in night(store, source, model)), Counter())

    after = written(store)
    assert {name: after[name] for name in before} == before
    rows = read_scores(store, model)
    reference = sorted(rows[f"{n:03d}.png"]["score"] for n in range(8))
    threshold = summary.classes["parts"].score
    assert threshold == reference[4]  # ceil(9 * 0.5) = the 5th of 8
    for number in range(20, 32):
        row = rows[f"{number:03d}.png"]
        assert row["threshold"] == threshold
        assert row["decision"] == ("anomalous" if row["score"] > threshold else "normal")
        assert row["p_value"] == (1 + sum(r >= row["score"] for r in reference)) / 9
    assert Counter(rows[f"{n:03d}.png"]["decision"] for n in range(20, 32)) == told
    assert set(told) == {"normal", "anomalous"}


def test_a_class_is_that_of_the_last_ingest(store, source, model) -> None:
    """Not that under which an image was scored."""
    night(store, source, model)
    labels = "\n".join(f"{n:03d}.png,0,{'bolt' if n < 4 else 'nut'}" for n in range(8))
    (source / "labels.csv").write_text(f"image,label,class\n{labels}\n")
    ingest_source.fn(store.uri, "parts", str(source), "labels", False)
    assert {name: c.images for name, c in calibrate_collection.fn(store.uri, "parts", model, 0.5).classes.items()} == {
        "bolt": 4,
        "nut": 4,
    }
    assert Counter(read_outline(store, "parts", model)["class_name"]) == {"bolt": 4, "nut": 4}
    assert Counter(row["class_name"] for row in stream_scored(store, "parts", model)) == {"bolt": 4, "nut": 4}


def test_masks_are_cut_at_the_pixel_threshold(store, source, model) -> None:
    night(store, source, model)
    pixel = calibrate_collection.fn(store.uri, "parts", model, 0.5).classes["parts"].pixel
    peaks = sorted(map_at(grid, 96, 96, 96, 4.0).max() for grid in read_maps(store, model).values())
    assert pixel == pytest.approx(peaks[4], abs=1e-6)
    write_photos(source, range(20, 32))
    night(store, source, model)
    grids, cut = read_maps(store, model), 0
    for number in range(20, 32):
        row = read_scores(store, model)[f"{number:03d}.png"]
        expected = map_at(grids[row["image_id"]], 40, 60, 96, 4.0) > pixel
        assert (row["mask_uri"] is not None) == expected.any()
        if row["mask_uri"]:
            mask = np.asarray(Image.open(row["mask_uri"].removeprefix("file://"))) > 0
            assert np.array_equal(mask, expected)
            cut += 1
    assert cut


def test_a_night_that_was_killed_before_a_calibration_ends_with_the_same_bytes(store, source, model) -> None:
    night(store, source, model)
    calibrate_collection.fn(store.uri, "parts", model, RATE)
    write_photos(source, range(20, 32))
    night(store, source, model)
    undisturbed = written(store)
    parts = store.find(*model_folder("parts", model.partition))
    store.fs.rm(store.path(*model_folder("parts", model.partition), parts[-1]))
    calibrate_collection.fn(store.uri, "parts", model, 0.5)
    night(store, source, model)
    assert written(store) == undisturbed


def test_the_last_calibration_before_an_image_counts(store, source, model) -> None:
    thresholds = []
    for rate, numbers in ((0.5, range(20, 24)), (RATE, range(30, 34))):
        night(store, source, model)
        thresholds.append(calibrate_collection.fn(store.uri, "parts", model, rate).classes["parts"].score)
        write_photos(source, numbers)
    night(store, source, model)
    rows = read_scores(store, model)
    assert [rows[name]["threshold"] for name in ("000.png", "020.png", "030.png")] == [None, *thresholds]


def test_the_store_says_where_the_thresholds_come_from(store, source, model) -> None:
    night(store, source, model)
    summary = calibrate_collection.fn(store.uri, "parts", model, RATE)
    found = json.loads(store.read("collections/parts/thresholds/model=bundle.v1/from-00001/threshold.json"))
    assert store.uri_of("collections/parts/thresholds/model=bundle.v1/from-00001/threshold.json") == summary.thresholds
    assert (found["collection"], found["false_alarm_rate"], found["manifest_parts"]) == ("parts", RATE, 1)
    assert (found["bundle_digest"], found["manifest_digest"]) == (model.digest, summary.manifest_digest)
    assert found["classes"]["parts"]["images"] == 8


def test_after_a_drift_the_last_nights_are_the_reference(store, source, model) -> None:
    write_photos(source, range(8, 20))
    night(store, source, model)
    put_newest_part_on(store, "2026-11-01")
    for day, numbers in (("2026-11-02", range(20, 40)), ("2026-11-05", range(40, 60))):
        write_plain(source, numbers)
        night(store, source, model)
        put_newest_part_on(store, day)
    (source / "000.png").unlink()
    night(store, source, model)  # brings nothing new: not a night that is counted
    calibrated = {nights: calibrate_collection.fn(store.uri, "parts", model, 0.5, nights) for nights in (None, 2)}

    rows = read_scores(store, model)
    window = [rows[f"{n:03d}.png"] for n in range(20, 60)]
    threshold = calibrated[2].classes["parts"]
    assert (calibrated[None].classes["parts"].images, threshold.images) == (59, 40)
    assert threshold.score == sorted(row["score"] for row in window)[20]  # ceil(41 * 0.5) = the 21st of 40
    peaks = {name: map_at(grid, 96, 96, 96, 4.0).max() for name, grid in read_maps(store, model).items()}
    assert threshold.pixel == pytest.approx(sorted(peaks[row["image_id"]] for row in window)[20], abs=1e-6)
    assert threshold != calibrated[None].classes["parts"]
    found = json.loads(store.read("collections/parts/thresholds/model=bundle.v1/from-00004/threshold.json"))
    assert (found["nights"], found["first_part"], found["manifest_parts"]) == (2, 1, 4)

    write_plain(source, range(60, 90))
    night(store, source, model)
    assert is_moved(store, model) is False
    assert {row["threshold"] for row in last_rows(store, model)} == {threshold.score}


def test_against_old_scores_the_nights_after_a_drift_are_flagged(store, source, model) -> None:
    write_photos(source, range(8, 40))
    night(store, source, model)
    put_newest_part_on(store, "2026-11-01")
    write_plain(source, range(40, 60))
    night(store, source, model)
    calibrate_collection.fn(store.uri, "parts", model, 0.5)
    write_plain(source, range(60, 90))
    night(store, source, model)
    assert is_moved(store, model) is True


def last_rows(store: Store, model: ModelVersion) -> list[dict]:
    rows = read_outline(store, "parts", model)
    return read_rest(store, "parts", model, rows[rows["part"] == rows["part"].max()]).to_dict("records")


def is_moved(store: Store, model: ModelVersion) -> bool:
    (found,) = compare_with_reference(store, "parts", model, read_outline(store, "parts", model)).values()
    return found.moved


def test_a_night_leaves_what_came_while_it_ran_to_the_next(store, source, model) -> None:
    night(store, source, model)
    write_plain(source, range(20, 23))
    night(store, source, model)
    parts = list_parts(store, "parts")
    assert [len(read_night.fn(store.uri, "parts", model, None, parts[:n]).rows) for n in (1, 2)] == [8, 11]


def test_a_night_tells_all_of_a_manifest_that_was_lost_and_made_anew(store, source, model) -> None:
    night(store, source, model)
    write_plain(source, range(20, 23))
    night(store, source, model)
    told = NightSummary(
        "id", "parts", str(source), model.uri, COMPLETED, "", 11, 11, 0, 11, {}, [], None, [], 1.0,
        digest_of(list_parts(store, "parts")), 2, "", "",
    )  # fmt: skip
    record_night.fn(store.uri, model, told)
    assert parts_told(store, "parts", model, list_parts(store, "parts")) == 2
    store.fs.rm(store.path(*manifest_folder("parts")), recursive=True)
    night(store, source, model)
    assert parts_told(store, "parts", model, list_parts(store, "parts")) == 0


@pytest.mark.parametrize("nights", [0, -1])
def test_no_nights_are_no_reference(store, source, model, nights: int) -> None:
    night(store, source, model)
    with pytest.raises(InputError, match=f"of one night or more, not of {nights}"):
        calibrate_collection.fn(store.uri, "parts", model, RATE, nights)


def test_versions_that_are_no_longer_there_are_no_reference(store, source, model) -> None:
    night(store, source, model)
    write_plain(source, range(2))  # replace two images, whose new versions are scored as well
    (source / "007.png").unlink()
    night(store, source, model)
    calibrate_collection.fn(store.uri, "parts", model, RATE)
    (path,) = store.find("collections/parts/thresholds", suffix=".parquet")
    reference = set(read_parquet(store, "collections/parts/thresholds", path)["image_id"].to_pylist())
    assert reference == set(read_outline(store, "parts", model)["image_id"])
    assert len(reference) == 7


def test_each_class_has_its_own_thresholds_and_one_that_is_too_small_none(store, tmp_path, model) -> None:
    for name, numbers in (("bolt", range(6)), ("nut", range(10, 16)), ("washer", range(20, 22))):
        write_photos(tmp_path / "source" / name / "good", numbers)
    write_photos(tmp_path / "source/nut/broken", range(40, 43))
    night(store, tmp_path / "source", model, "folders")
    summary = calibrate_collection.fn(store.uri, "parts", model, RATE)
    assert summary.too_small == {"washer": 2}
    assert {name: found.images for name, found in summary.classes.items()} == {"bolt": 6, "nut": 6}  # not the broken
    assert summary.classes["bolt"].score != summary.classes["nut"].score
    for name in ("bolt", "washer"):
        write_photos(tmp_path / "source" / name / "good", range(60, 61))
    (tmp_path / "source/bolt/good/note.png").write_text("no image")
    night(store, tmp_path / "source", model, "folders")
    rows = list(read_parts(store, *model_folder("parts", model.partition), schema=SCORES).to_pylist())[-3:]
    decided = {(row["class_name"], row["error_kind"]): row["threshold"] for row in rows}
    assert decided == {
        ("bolt", None): summary.classes["bolt"].score,
        ("bolt", "unsupported"): None,
        ("washer", None): None,
    }


def test_too_few_images_for_the_rate_are_refused_with_their_number(store, source, model) -> None:
    night(store, source, model)
    with pytest.raises(InputError, match="needs 99 scored images of a class, 'parts' has 8 of 'parts'"):
        calibrate_collection.fn(store.uri, "parts", model, 0.01)
    with pytest.raises(InputError, match="between 0 and 1"):
        calibrate_collection.fn(store.uri, "parts", model, 1.0)


def test_scores_of_another_bundle_under_the_same_number_are_no_reference(store, source, model) -> None:
    night(store, source, model)
    give_to_another_bundle(store, "parts", model)
    with pytest.raises(InputError, match="are of another model of that name"):
        calibrate_collection.fn(store.uri, "parts", model, RATE)


def test_a_collection_that_is_not_scored_is_no_reference(store, source, model) -> None:
    ingest_source.fn(store.uri, "parts", str(source), "flat", False)
    with pytest.raises(InputError, match="run `anomalyclip score --collection parts` first"):
        calibrate_collection.fn(store.uri, "parts", model, RATE)


def test_the_thresholds_of_a_bundle_count_where_the_store_has_none(store, source, model, bundle, tmp_path) -> None:
    night(store, source, model)
    calibrate_collection.fn(store.uri, "parts", model, RATE)
    calibrated = tmp_path / "calibrated"
    calibrated.mkdir()
    for path in bundle.iterdir():
        (calibrated / path.name).write_bytes(path.read_bytes())
    data = store.read("collections/parts/thresholds/model=bundle.v1/from-00001/threshold.json")
    (calibrated / "threshold.json").write_bytes(json.dumps(json.loads(data) | {"reference": None}).encode())
    other = ModelVersion(str(calibrated), "calibrated", "1", bundle_digest(calibrated))
    assert other.digest != model.digest
    night(store, source, other)
    rows = read_scores(store, other)
    assert {row["decision"] for row in rows.values()} == {"normal", "anomalous"}
    assert {row["p_value"] for row in rows.values()} == {None}
    assert {row["bundle_digest"] for row in rows.values()} == {other.digest}


def test_thresholds_that_are_none_of_ours_are_refused_with_their_uri(store, model) -> None:
    store.write(b'{"classes": []}', "collections/parts/thresholds/model=bundle.v1/from-00000/threshold.json")
    with pytest.raises(InputError, match=r"from-00000/threshold\.json holds no thresholds"):
        find_calibration(store, "parts", model, 0)
    assert bundle_calibration(store, model) is None


def test_awkward_sizes_are_cut_at_no_higher_value_than_the_peak(store, source, model) -> None:
    """An image's own map never exceeds the peak of its map at the model's size, so the pixel rate holds at any size."""
    night(store, source, model)
    for grid in read_maps(store, model).values():
        peak = map_at(grid, 96, 96, 96, 4.0).max()
        for size in ((1, 1), (40, 60), (300, 500), (1000, 3)):
            assert map_at(grid, *size, 96, 4.0).max() <= peak + 1e-6


def test_without_maps_there_is_no_threshold_for_masks(store, source, model) -> None:
    night(store, source, model)
    folder = model_folder("parts", model.partition, "maps")
    store.fs.rm(store.path(*folder, store.find(*folder, suffix=".parquet")[0]))
    with pytest.raises(InputError, match=r"of 4 images of 'parts' the store has a score of .* but no map"):
        calibrate_collection.fn(store.uri, "parts", model, RATE)


def test_a_threshold_is_a_finite_number(store, source, model) -> None:
    night(store, source, model)
    calibrate_collection.fn(store.uri, "parts", model, RATE)
    place = "collections/parts/thresholds/model=bundle.v1/from-00001/threshold.json"
    content = json.loads(store.read(place))
    content["classes"]["parts"]["pixel"] = float("nan")
    store.write(json.dumps(content).encode(), place)
    with pytest.raises(InputError, match="a threshold is a finite number"):
        find_calibration(store, "parts", model, 1)
