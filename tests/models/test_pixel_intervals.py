"""Bootstrapped pixel metrics are those of the drawn images; the draws are paired, and memory does not grow with them."""

from functools import partial

import numpy as np
import pytest

from models import pixel_intervals
from models.intervals import interval
from models.metrics import aupro, pixel_metrics
from models.pixel_intervals import ImageCounts, PixelBootstrap, bins_of, bootstrap_pixel_metrics
from models.ranking import official_area, official_thresholds, overlap_weights
from tests.memory import traced_peak

TOLERANCES = {"auroc": 3e-4, "ap": 1e-3, "f1_max": 4e-3, "standard": 3e-4}  # of small, ragged maps


def random_case(seed: int, images: int = 12, label: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N,), masks and maps (N, 64, 64); every second image anomalous, or all of one label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2 if label is None else np.full(images, label)
    masks = np.zeros((images, 64, 64), bool)
    for number in np.flatnonzero(labels):
        for _ in range(rng.integers(1, 4)):
            y, x, size = rng.integers(0, 50, 3)
            masks[number, y : y + 4 + size // 3, x : x + 6] = True
    maps = rng.random(masks.shape) ** 3 + masks * rng.random((images, 1, 1)) + 0.3 * rng.random((images, 1, 1))
    return labels, masks, maps.astype(np.float32)


def drawn(labels: np.ndarray, resamples: int) -> np.ndarray:
    """(N, resamples): the counts of the seed 0."""
    counts = ImageCounts(labels, resamples, 0)
    return np.stack([counts.next(int(label)) for label in labels])


def official_with_thresholds_of(maps: np.ndarray, masks: np.ndarray, drawn_maps: np.ndarray) -> float | None:
    """The published AUPRO of drawn maps, at the thresholds of all maps."""
    thresholds = official_thresholds(maps.min(), maps.max())
    weights = np.concatenate([overlap_weights(mask)[0] for mask in masks])
    regions = sum(overlap_weights(mask)[1] for mask in masks)
    fpr = np.array([(drawn_maps[~masks] > threshold).mean() for threshold in thresholds])
    return official_area(fpr, np.array([weights[drawn_maps[masks] > t].sum() for t in thresholds]) / regions)


@pytest.mark.parametrize("label", [None, 1])
def test_a_resample_has_the_metrics_of_its_images(label: int | None) -> None:
    """Where all images are anomalous, too: their background is what their defects are told from."""
    labels, masks, maps = random_case(0, label=label)
    found = bootstrap_pixel_metrics(labels, masks, maps, resamples=20)
    for number, images in enumerate(drawn(labels, 20).T):
        assert (images.sum(), images @ labels) == (len(labels), labels.sum())
        chosen = np.repeat(np.arange(len(labels)), images)
        exact = pixel_metrics(masks[chosen], maps[chosen]) | {
            "standard": aupro(masks[chosen], maps[chosen], "standard")
        }
        for name, tolerance in TOLERANCES.items():
            assert found[name][number] == pytest.approx(exact[name], abs=tolerance), name
        official = official_with_thresholds_of(maps, masks[chosen], maps[chosen])
        assert found["official"][number] == pytest.approx(official, abs=1e-5)


def test_the_official_aupro_of_a_resample_with_the_whole_range_is_that_of_its_images() -> None:
    labels, masks, maps = random_case(1)
    maps[:, 0, :2], masks[:, 0, :2] = (0, 3), False  # whatever is drawn has the same thresholds
    found = bootstrap_pixel_metrics(labels, masks, maps, resamples=10)["official"]
    for value, images in zip(found, drawn(labels, 10).T, strict=True):
        chosen = np.repeat(np.arange(len(labels)), images)
        assert value == pytest.approx(aupro(masks[chosen], maps[chosen]), abs=1e-5)


def test_counts_are_those_of_drawing_with_replacement() -> None:
    """Within four standard errors: mean 1, variance 1 - 1/n, covariance of two images -1/n."""
    labels = np.array([1, 0, 1, 1, 1, 1])
    counts = drawn(labels, 40_000)[labels == 1]
    assert (drawn(labels, 10)[1] == 1).all()
    assert counts.mean(axis=1) == pytest.approx(np.ones(5), abs=0.02)
    assert np.cov(counts) == pytest.approx(np.eye(5) - 1 / 5, abs=0.04)


def test_two_detectors_are_drawn_the_same_images_and_seeds_draw_others() -> None:
    labels, masks, maps = random_case(2)
    found, again = (bootstrap_pixel_metrics(labels, masks, maps, 50) for _ in range(2))
    other = bootstrap_pixel_metrics(labels, masks, maps, 50, seed=1)
    moved = bootstrap_pixel_metrics(labels, masks, 2 * maps, 50)
    for name, values in found.items():
        assert (values == again[name]).all()
        assert moved[name] == pytest.approx(values, abs=1e-6)
        assert (values != other[name]).any()


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_neither_blocks_of_images_nor_chunks_of_resamples_change_a_metric(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(3)
    expected = bootstrap_pixel_metrics(*case, resamples=30)
    monkeypatch.setattr(pixel_intervals, "BLOCK", block)
    monkeypatch.setattr(pixel_intervals, "CHUNK", block)
    for name, values in bootstrap_pixel_metrics(*case, resamples=30).items():
        assert values == pytest.approx(expected[name], rel=1e-12)


def test_the_interval_holds_the_metric_and_narrows_with_more_images() -> None:
    widths = []
    for images in (20, 320):
        labels, masks, maps = random_case(4, images)
        low, high = interval(bootstrap_pixel_metrics(labels, masks, maps, resamples=300)["auroc"])
        assert low < pixel_metrics(masks, maps)["auroc"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_resamples_without_an_anomalous_pixel_are_undefined() -> None:
    labels, masks, maps = random_case(5, images=3, label=1)
    masks[1:] = False
    without = drawn(labels, 200)[0] == 0
    assert 0 < without.sum() < 200
    for values in bootstrap_pixel_metrics(labels, masks, maps, 200).values():
        assert (np.isnan(values) == without).all()
    for uniform in (np.zeros_like(masks), np.ones_like(masks)):
        assert np.isnan(list(bootstrap_pixel_metrics(labels, uniform, maps, 5).values())).all()


def test_constant_maps_leave_only_the_official_aupro_undefined() -> None:
    labels, masks, maps = random_case(6)
    found = bootstrap_pixel_metrics(labels, masks, np.full_like(maps, 0.25), 5)
    assert found["auroc"].tolist() == [0.5] * 5
    assert found["standard"] == pytest.approx(np.full(5, 0.15))
    assert np.isnan(found["official"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        bins_of([1], [np.array([[0, bad]], np.float32)])


def test_memory_does_not_grow_with_the_number_of_maps() -> None:
    labels, masks, maps = random_case(7, images=4)

    def run(images: int) -> None:
        many = np.resize(labels, images)
        bootstrap = PixelBootstrap(many, bins_of(many, (maps[i % 4] for i in range(images))), resamples=100)
        for number in range(images):
            bootstrap.add(masks[number % 4], maps[number % 4])
        bootstrap.draws()

    run(4)
    fewer, more = (traced_peak(partial(run, images)) for images in (800, 1600))
    assert more < fewer + 1_000_000  # the histograms of the other 800 are 19 MB, their maps 13 MB
