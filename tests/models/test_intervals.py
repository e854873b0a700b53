"""Bootstrapped image metrics are those of the drawn images; intervals are seeded and narrow as images grow."""

import numpy as np
import pytest

from models import intervals
from models.intervals import bootstrap_image_metrics, interval
from models.metrics import image_metrics


def random_case(seed: int, size: int = 40, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 3 == 0
    return labels, np.floor(levels * (rng.random(size) + 0.3 * labels)) / levels


@pytest.mark.parametrize("levels", [3, 12, 10**9])
def test_a_resample_has_the_metrics_of_its_images(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = random_case(0, levels=levels)
    drawn = []
    draw = intervals._draw

    def record(*arguments: object) -> np.ndarray:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(intervals, "_draw", record)
    found = bootstrap_image_metrics(labels, scores, resamples=20)
    counts = drawn[0] + drawn[1]
    assert counts.sum(axis=1).tolist() == [len(labels)] * 20
    for number, images in enumerate(counts):
        chosen = np.repeat(np.arange(len(labels)), images)
        expected = image_metrics(labels[chosen], scores[chosen])
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)


def test_every_resample_has_as_many_images_of_each_class() -> None:
    found = bootstrap_image_metrics([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.2], resamples=200)
    assert {round(float(value), 6) for value in found["auroc"]} <= {round(k / 6, 6) for k in range(7)}
    assert np.isfinite(list(found.values())).all()


def test_the_seed_decides() -> None:
    labels, scores = random_case(1)
    first, again, other = (bootstrap_image_metrics(labels, scores, seed=seed)["auroc"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_drawing_in_several_blocks_keeps_the_number_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "BLOCK", 100)
    found = bootstrap_image_metrics(*random_case(2), resamples=101)
    assert {len(values) for values in found.values()} == {101}


def test_the_interval_holds_the_metric_and_narrows_with_more_images() -> None:
    widths = []
    for size in (60, 6000):
        labels, scores = random_case(3, size, levels=10**9)
        low, high = interval(bootstrap_image_metrics(labels, scores, resamples=300)["auroc"])
        assert low < image_metrics(labels, scores)["auroc"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_one_class_alone_has_none(labels: list[int]) -> None:
    assert bootstrap_image_metrics(labels, np.arange(len(labels))) is None
