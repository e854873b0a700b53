"""Scenes are reproducible, their masks are true, and the split of the families is one."""

import itertools
import unicodedata

import numpy as np
import pytest

from models.embedded.composites import sign_field, signs
from models.embedded.generator import DEFECTS, FAMILIES, SPLIT, Scene, scene

SIZE = 96


def same(a: Scene, b: Scene) -> bool:
    pairs = zip((a.normal, *a.damaged, *a.masks), (b.normal, *b.damaged, *b.masks), strict=True)
    return a.defects == b.defects and all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_scene_depends_on_its_arguments_only(family: str) -> None:
    first = scene(family, SIZE, seed=3)
    np.random.seed(1)  # the global stream must not matter
    assert same(first, scene(family, SIZE, seed=3))
    assert not same(first, scene(family, SIZE, seed=4))


@pytest.mark.parametrize("n_damaged", [0, 1, 3])
def test_scene_has_as_many_damaged_versions_as_asked(n_damaged: int) -> None:
    made = scene("gear", SIZE, seed=0, n_damaged=n_damaged)
    assert len(made.damaged) == len(made.masks) == len(made.defects) == n_damaged


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_masks_have_their_shapes_and_types(family: str) -> None:
    made = scene(family, SIZE, seed=0)
    assert made.family == family
    assert set(made.defects) <= set(DEFECTS)
    for image in (made.normal, *made.damaged):
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
    for mask in made.masks:
        assert mask.shape == (SIZE, SIZE)
        assert mask.dtype == np.bool_
        assert 0 < mask.mean() < 0.6


@pytest.mark.parametrize("family", FAMILIES)
def test_damage_lies_inside_the_mask(family: str) -> None:
    """Over several scenes, as sensor noise also differs between the exposures of a scene."""
    inside, outside = [], []
    for seed in range(6):
        made = scene(family, SIZE, seed)
        for image, mask in zip(made.damaged, made.masks, strict=True):
            change = np.abs(image.astype(np.float32) - made.normal).mean(2)
            inside.append(change[mask].mean())
            outside.append(change[~mask].mean())
    assert np.mean(inside) > 3 * np.mean(outside)


def test_every_kind_of_defect_occurs() -> None:
    drawn = {name for seed, family in itertools.product(range(4), FAMILIES) for name in scene(family, 64, seed).defects}
    assert drawn == set(DEFECTS)


def test_split_is_disjoint_and_complete() -> None:
    assert set(SPLIT) == {"pretrain", "auxiliary", "held_out"}
    names = [name for part in SPLIT.values() for name in part]
    assert len(names) == len(set(names))
    assert set(names) == set(FAMILIES)


def test_signs_have_an_inside_and_are_no_gears() -> None:
    characters = [character for _, character in signs()]
    assert len(set(characters)) > 5000
    assert not any("GEAR" in unicodedata.name(character, "") for character in characters)
    for number in range(0, len(characters), 40):
        assert sign_field(number).min() < 0 < sign_field(number).max()
