"""Conformal thresholds: the stated false-alarm rate is the observed one, and what contamination makes of it."""

import numpy as np
import pytest

from models.conformal import conformal_p_values, conformal_threshold, smallest_reference

RATE = 0.05


def observed_rate(contamination: float, anomalies_score: float) -> float:
    """Share of 1,000 new normal images above the threshold of 400 reference images, the mean of 400 seeded repetitions.

    The standard error of the mean is below 0.0007.
    """
    generator = np.random.default_rng(20261124)
    rates = []
    for _ in range(400):
        reference = generator.normal(size=400)
        anomalous = round(contamination * 400)
        reference[:anomalous] = generator.normal(anomalies_score, 1, anomalous)
        rates.append((generator.normal(size=1000) > conformal_threshold(reference, RATE)).mean())
    return float(np.mean(rates))


@pytest.mark.parametrize("contamination", [0.0, 0.01, 0.05, 0.10])
def test_anomalies_in_the_reference_lower_the_observed_rate_as_the_docstring_says(contamination: float):
    expected = max(0.0, RATE - contamination) / (1 - contamination)
    observed = observed_rate(contamination, anomalies_score=8)
    print(f"stated {RATE}, contamination {contamination}: observed {observed:.4f}, expected {expected:.4f}")
    assert observed == pytest.approx(expected, abs=0.004)
    assert observed <= RATE + 0.002


@pytest.mark.parametrize("contamination", [0.01, 0.05, 0.10])
def test_anomalies_that_score_low_raise_the_rate_by_no_more_than_the_docstring_says(contamination: float):
    observed = observed_rate(contamination, anomalies_score=-8)
    assert RATE - 0.002 < observed <= RATE / (1 - contamination) + 0.002


@pytest.mark.parametrize("n", [19, 20, 57, 99, 100, 400])
@pytest.mark.parametrize("rate", [0.05, 0.07, 0.1, 0.5])
def test_a_score_above_the_threshold_is_one_with_a_p_value_within_the_rate(n: int, rate: float):
    generator = np.random.default_rng(n)
    reference, scores = generator.integers(0, 40, n) / 40, generator.integers(0, 45, 500) / 40  # with many ties
    decisions = scores > conformal_threshold(reference, rate)
    assert np.array_equal(decisions, conformal_p_values(reference, scores) <= rate + 1e-12)


def test_p_values_are_counted_as_the_formula_says():
    reference, scores = [0.1, 0.2, 0.2, 0.9], [0.0, 0.2, 0.5, 0.9, 1.0]
    slow = [(1 + sum(r >= s for r in reference)) / 5 for s in scores]
    assert conformal_p_values(reference, scores).tolist() == slow == [1.0, 0.8, 0.4, 0.4, 0.2]


def test_p_values_of_normal_images_are_uniform():
    generator = np.random.default_rng(0)
    p = np.concatenate([conformal_p_values(generator.random(99), generator.random(10)) for _ in range(2000)])
    for level in (0.05, 0.2, 0.5, 0.9):
        assert (p <= level).mean() == pytest.approx(level, abs=0.02)


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.07, 14)])
def test_a_reference_that_is_too_small_is_refused(rate: float, needed: int):
    assert smallest_reference(rate) == needed
    assert conformal_threshold(np.arange(needed), rate) == needed - 1  # the highest of them
    with pytest.raises(ValueError, match=f"needs {needed} reference scores, there are {needed - 1}"):
        conformal_threshold(np.arange(needed - 1), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal_threshold(np.arange(100), rate)
