"""Drift: what has moved is flagged, what has not is not, however many classes and images there are."""

import numpy as np

from models.drift import SMALLEST, find_drift


def test_scores_of_the_same_distribution_are_not_flagged_however_many_classes_there_are() -> None:
    generator = np.random.default_rng(0)
    reference = {str(name): generator.beta(2, 5, 500) for name in range(200)}
    scores = {name: generator.beta(2, 5, 100) for name in reference}
    assert not [name for name, found in find_drift(reference, scores).items() if found.moved]


def test_scores_of_another_distribution_have_moved() -> None:
    generator = np.random.default_rng(0)
    scores = {"nut": generator.beta(5, 5, 100), "bolt": generator.beta(2, 5, 100)}
    found = find_drift({"nut": generator.beta(2, 5, 500), "bolt": generator.beta(2, 5, 500)}, scores)
    assert {name: drift.moved for name, drift in found.items()} == {"nut": True, "bolt": False}
    assert (found["nut"].images, found["nut"].reference) == (100, 500)
    assert found["nut"].distance > 0.3


def test_a_class_shares_the_level_with_all_that_are_tested() -> None:
    generator = np.random.default_rng(3)
    reference, scores = generator.normal(0, 1, 500), generator.normal(0.5, 1, 100)
    alone = find_drift({"nut": reference}, {"nut": scores})["nut"]
    many = find_drift(dict.fromkeys(map(str, range(1000)), reference), dict.fromkeys(map(str, range(1000)), scores))
    assert alone.moved
    assert 0.001 / 1000 < many["7"].p_value == alone.p_value < 0.001
    assert not many["7"].moved


def test_a_difference_that_is_significant_and_small_is_not_flagged() -> None:
    generator = np.random.default_rng(0)
    found = find_drift({"nut": generator.normal(0, 1, 20_000)}, {"nut": generator.normal(0.1, 1, 20_000)})["nut"]
    assert found.p_value < 1e-6
    assert not found.moved


def test_classes_without_a_reference_or_with_few_images_are_not_tested() -> None:
    reference = {"nut": np.linspace(0, 0.5, 200), "bolt": np.linspace(0, 0.5, 200)}
    scores = {"nut": np.full(SMALLEST - 1, 0.9), "bolt": np.full(SMALLEST, 0.9), "washer": np.full(50, 0.9)}
    found = find_drift(reference, scores)
    assert set(found) == {"bolt"}
    assert found["bolt"].moved
    assert find_drift({}, {}) == {}
