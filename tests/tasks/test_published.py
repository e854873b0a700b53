"""Published data sets as their publishers ship them: classes, splits, masks by name, counts, and what does not fit."""

import logging
from pathlib import Path
from typing import get_args

import pytest

from tasks.errors import InputError
from tasks.layout_names import Layout
from tasks.layouts import DATASETS, LAYOUTS, read_layout
from tasks.manifest import ingest_source
from tasks.store import Store
from tests.tasks.miniatures import MINIATURES, facts, write


@pytest.mark.parametrize("layout", MINIATURES)
def test_a_miniature_is_read_as_its_publisher_means_it(layout: str, tmp_path: Path) -> None:
    names, expected = MINIATURES[layout]
    write(tmp_path, *names)
    _, entries = read_layout(str(tmp_path), layout, "parts")
    assert facts(tmp_path, entries) == expected


def test_there_are_17_data_sets_and_the_command_line_names_every_layout() -> None:
    assert len(DATASETS) == 17
    assert set(MINIATURES) | {"visa"} == set(DATASETS)
    assert sorted(LAYOUTS) == sorted(get_args(Layout))


MASKED = {
    layout: next((name, fact[4]) for name, fact in expected.items() if fact[4])
    for layout, (_, expected) in MINIATURES.items()
    if any(fact[4] for fact in expected.values())
}


@pytest.mark.parametrize("layout", sorted(MASKED.keys() - {"dagm"}))
def test_a_missing_mask_is_an_error_that_names_the_image(layout: str, tmp_path: Path) -> None:
    image, mask = MASKED[layout]
    write(tmp_path, *MINIATURES[layout][0])
    (tmp_path / str(mask)).unlink()
    with pytest.raises(InputError) as error:
        read_layout(str(tmp_path), layout, "parts")
    assert f"{image!r} has no mask" in str(error.value)


@pytest.mark.parametrize("folder", ["", "screw"])
def test_a_published_class_without_any_ground_truth_is_an_error_that_names_the_image(
    folder: str, tmp_path: Path
) -> None:
    write(tmp_path, "screw/test/good/1.png", "screw/test/bent/2.png", "my part/test/bent/3.png")
    with pytest.raises(InputError) as error:
        read_layout(str(tmp_path / folder), "mvtec", "parts")
    assert "test/bent/2.png' has no mask" in str(error.value)


def test_a_class_of_ones_own_may_be_without_any_ground_truth(tmp_path: Path) -> None:
    write(tmp_path, "my part/test/bent/3.png", "screw/test/bent/2.png", "screw/ground_truth/bent/2_mask.png")
    _, entries = read_layout(str(tmp_path), "mvtec", "parts")
    assert {e.class_name: (e.label, e.mask_uri is not None) for e in entries} == {
        "my part": (1, False), "screw": (1, True),
    }  # fmt: skip


@pytest.mark.parametrize("layout", sorted(MASKED))
def test_an_extra_mask_is_an_error_that_names_it(layout: str, tmp_path: Path) -> None:
    mask = Path(str(MASKED[layout][1]))
    extra = str(mask.with_name(f"99{mask.name}"))
    write(tmp_path, *MINIATURES[layout][0], extra)
    with pytest.raises(InputError) as error:
        read_layout(str(tmp_path), layout, "parts")
    assert f"{extra!r} belongs to no image" in str(error.value)


def test_two_masks_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", "masks/1.BMP")
    with pytest.raises(InputError, match=r"'masks/1\.BMP' and 'masks/1\.png'"):
        read_layout(str(tmp_path), "kvasir", "parts")


def test_masks_are_paired_by_name_where_sorted_positions_would_swap_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        "images/1.png",
        "images/10.png",
        "masks/1_mask.png",
        "masks/10_mask.png",
        "masks/2.png",
        "images/2.png",
    )
    _, entries = read_layout(str(tmp_path), "cvc-colondb", "parts")
    assert {e.object.name: Path(str(e.mask_uri)).name for e in entries} == {
        "images/1.png": "1_mask.png", "images/10.png": "10_mask.png", "images/2.png": "2.png",
    }  # fmt: skip


def test_an_image_whose_own_name_ends_like_a_mask_has_its_mask(tmp_path: Path) -> None:
    write(tmp_path, "images/a_gt.png", "masks/a_gt.png", "images/a.png", "masks/a_GT.png")
    _, entries = read_layout(str(tmp_path), "kvasir", "parts")
    assert {e.object.name: Path(str(e.mask_uri)).name for e in entries} == {
        "images/a.png": "a_GT.png", "images/a_gt.png": "a_gt.png",
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["dagm", "btad"])
def test_one_class_alone_is_named_after_its_folder(layout: str, tmp_path: Path) -> None:
    names, expected = MINIATURES[layout]
    write(tmp_path, *names)
    folder = tmp_path / Path(next(iter(expected))).parts[0] / next(iter(expected.values()))[0]
    _, entries = read_layout(str(folder), layout, "parts")
    assert {entry.class_name for entry in entries} == {folder.name}


# --- the set's own folder, and those above it -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", MINIATURES)
def test_a_set_is_found_from_the_folder_above_it(layout: str, tmp_path: Path) -> None:
    names, expected = MINIATURES[layout]
    write(tmp_path / "the set", *names)
    _, entries = read_layout(str(tmp_path), layout, "parts")
    assert facts(tmp_path, entries) == {
        f"the set/{name}": (*fact, mask and f"the set/{mask}") for name, (*fact, mask) in expected.items()
    }


@pytest.mark.parametrize("layout", MINIATURES)
def test_a_copy_of_a_set_further_down_is_left_out_and_said(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, expected = MINIATURES[layout]
    write(tmp_path, *names)
    write(tmp_path / "a/a copy", *names)
    with caplog.at_level(logging.WARNING):
        _, entries = read_layout(str(tmp_path), layout, "parts")
    assert facts(tmp_path, entries) == expected
    assert "images further down are left out, as 'a/a copy/" in caplog.text


@pytest.mark.parametrize("layout", MINIATURES)
def test_two_copies_of_a_set_side_by_side_are_an_error_that_names_both(layout: str, tmp_path: Path) -> None:
    names, _ = MINIATURES[layout]
    for folder in ("a copy", "the set"):
        write(tmp_path / folder, *names)
    with pytest.raises(InputError, match=r"more than once, in 'a copy/.*' and 'the set/.*': give one of them"):
        read_layout(str(tmp_path), layout, "parts")


def test_the_counts_of_mvtec_are_held_against_what_lies_in_a_folder_below(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it has most of the classes: a few are a choice, or objects of one's own."""
    classes = ["bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"]
    for found, warned in ((classes[:7], False), (classes, True)):
        write(tmp_path, *(f"mvtec_anomaly_detection/{name}/test/good/000.png" for name in found))
        with caplog.at_level(logging.WARNING):
            read_layout(str(tmp_path), "mvtec", "parts")
        assert ("8 normal and 0 anomalous test images, 467 and 1258 are expected" in caplog.text) is warned
        assert ("classes missing: pill, screw, tile" in caplog.text) is warned


def test_objects_of_ones_own_in_the_layout_of_mvtec_may_lie_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path, "line 1/nut/test/good/1.png", "line 2/nut/test/good/1.png", "bolt/test/good/1.png")
    _, entries = read_layout(str(tmp_path), "mvtec", "parts")
    assert {entry.class_name for entry in entries} == {"line 1/nut", "line 2/nut", "bolt"}


# --- counts -----------------------------------------------------------------------------------------------------------


def test_a_count_that_differs_from_the_papers_is_said_at_ingest(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "source", "01/test/ok/1.png", "01/test/ko/2.png", "01/ground_truth/ko/2.png", "04/test/ok/1.png")
    with caplog.at_level(logging.WARNING):
        assert ingest_source.fn(store.uri, "btad", str(tmp_path / "source"), "btad", False).listed == 3
    assert "BTAD in file://" in caplog.text
    assert "classes missing: 02, 03" in caplog.text
    assert "classes that the set does not have: 04" in caplog.text
    assert "2 normal and 1 anomalous test images, 451 and 290 are expected" in caplog.text


def test_counts_that_agree_are_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, number in (("no", DATASETS["brainmri"].normal), ("yes", DATASETS["brainmri"].anomalous)):
        write(tmp_path, *(f"{folder}/{i}.jpg" for i in range(number)))
    with caplog.at_level(logging.WARNING):
        read_layout(str(tmp_path), "brainmri", "parts")
    assert caplog.text == ""


def test_the_documentation_has_a_row_of_each_set_with_its_counts() -> None:
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("|")]
    told = {row[2].strip("`"): (row[3].partition(",")[0], row[4], row[5]) for row in rows if len(row) == 10}
    for layout, dataset in DATASETS.items():
        assert told[layout] == (str(len(dataset.classes)), str(dataset.normal), str(dataset.anomalous))


def test_another_set_in_the_layout_of_mvtec_is_not_held_against_its_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "my part/test/good/1.png")
    with caplog.at_level(logging.WARNING):
        read_layout(str(tmp_path), "mvtec", "parts")
    assert caplog.text == ""


@pytest.mark.parametrize("layout", DATASETS)
def test_a_source_without_the_set_is_refused(layout: str, tmp_path: Path) -> None:
    write(tmp_path, "holiday.png")
    with pytest.raises(InputError, match="holds no image in the layout"):
        read_layout(str(tmp_path), layout, "parts")
