"""What the demo inspects: generated images with exact masks in MVTec's layout, and real photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.embedded.generator import SPLIT
from tasks.demo_data import SIZE, copy_solar_cells, generate_images, generated_files
from tasks.layouts import read_layout
from tasks.store import Store


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    store = Store(str(tmp_path_factory.mktemp("generated")))
    return store, generate_images.fn(store.uri, "held_out", 2)


def test_every_family_of_the_split_has_flawless_and_damaged_images_with_masks(generated) -> None:
    _, entries = read_layout(generated[1], "mvtec", "demo")
    assert {entry.class_name for entry in entries} == {family.replace(" ", "_") for family in SPLIT["held_out"]}
    for name in {entry.class_name for entry in entries}:
        of_class = [entry for entry in entries if entry.class_name == name]
        assert sorted((entry.label, entry.mask_uri is not None) for entry in of_class) == [(0, False), (1, True)]


def test_images_and_masks_are_of_one_size_and_masks_of_two_values(generated) -> None:
    for entry in read_layout(generated[1], "mvtec", "demo")[1]:
        assert Image.open(entry.object.uri.removeprefix("file://")).size == (SIZE, SIZE)
        if entry.mask_uri:
            mask = Image.open(entry.mask_uri.removeprefix("file://"))
            assert (mask.mode, mask.size, set(np.unique(mask))) == ("L", (SIZE, SIZE), {0, 255})


def test_what_exists_is_not_written_again_and_what_is_lost_comes_back_the_same(generated) -> None:
    store, uri = generated
    files = sorted(Path(uri.removeprefix("file://")).rglob("*.png"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    files[0].unlink()
    assert generate_images.fn(store.uri, "held_out", 2) == uri
    assert {path: path.read_bytes() for path in files} == {path: data for path, (_, data) in before.items()}
    assert [path.stat().st_mtime_ns == before[path][0] for path in files] == [False] + [True] * (len(files) - 1)


def test_a_smaller_demo_takes_away_what_a_larger_one_left_and_mends_what_differs(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = Path(generate_images.fn(store.uri, "held_out", 3).removeprefix("file://"))
    first, third = (folder / f"gear/test/good/000{number}.png" for number in (0, 2))
    before = first.read_bytes()
    first.write_bytes(b"of another version")
    generate_images.fn(store.uri, "held_out", 2)
    assert first.read_bytes() == before
    assert not third.exists()


def test_images_are_of_scenes_of_their_own() -> None:
    flawless = [next(iter(generated_files("leather", number).values())) for number in (0, 2)]
    assert not np.array_equal(*flawless)


def test_solar_cells_are_real_photographs_of_both_labels(tmp_path: Path) -> None:
    uri = copy_solar_cells.fn(str(tmp_path), 3)
    _, entries = read_layout(uri, "folders", "cells")
    assert sorted(str(entry.label) for entry in entries) == ["0"] * 3 + ["1"] * 3
    images = [Image.open(entry.object.uri.removeprefix("file://")) for entry in entries]
    assert {(image.mode, image.size) for image in images} == {("L", (300, 300))}
    assert copy_solar_cells.fn(str(tmp_path), 3) == uri
    assert read_layout(uri, "folders", "cells")[1] == entries  # the same versions of the same cells
