"""Maps that come one by one have the metrics of all of them together; memory does not grow with their number."""

from functools import partial

import numpy as np
import pytest

from models import ranking
from models.metrics import aupro, pixel_metrics, pro_curve
from models.ranking import PixelRanking, to_keys
from tests.memory import traced_peak

exactly = {"rel": 0, "abs": 1e-12}


def random_case(seed: int, images: int = 6, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((images, 24, 20)) < 0.2
    maps = rng.normal(size=masks.shape) + masks
    return masks, (maps if levels is None else np.round(maps * levels) / levels).astype(np.float32)


def ranked(masks: np.ndarray, maps: np.ndarray) -> ranking.PixelResult:
    with PixelRanking() as pixels:
        for mask, anomaly_map in zip(masks, maps, strict=True):
            pixels.add(mask, anomaly_map)
        return pixels.result()


@pytest.mark.parametrize("run", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("levels", [None, 3, 100])
def test_the_metrics_are_those_of_sorting_in_double_precision(
    run: int, levels: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "RUN", run)
    masks, maps = random_case(0, 2 if run == 1 else 6, levels)
    found, plain = ranked(masks, maps), maps.astype(np.float64)  # float64 is not spilled, but sorted
    assert found.pixel == pytest.approx(pixel_metrics(masks, plain), **exactly)
    assert found.aupro["standard"] == pytest.approx(aupro(masks, plain, "standard"), **exactly)


def test_official_aupro_is_that_of_sorting() -> None:
    """Both have the thresholds of the float32 maps; only their comparison is in another precision."""
    for seed in range(5):
        masks, maps = random_case(seed, levels=64)  # the range and every level are exact in both
        assert ranked(masks, maps).aupro["official"] == pytest.approx(aupro(masks, maps.astype(float)), **exactly)


def test_kept_points_of_the_pro_curve_lie_on_it() -> None:
    masks, maps = random_case(1, images=20)
    fpr, overlap = ranked(masks, maps).curve
    exact_fpr, exact_overlap = pro_curve(masks, maps)
    for x, y in zip(fpr[:-1], overlap[:-1], strict=True):
        assert np.isclose(np.hypot(exact_fpr - x, exact_overlap - y), 0, atol=1e-9).any()
    assert (fpr[0], fpr[-1]) == (0, 0.3)
    assert overlap[-1] == pytest.approx(np.interp(0.3, exact_fpr, exact_overlap))


def test_keys_are_ordered_as_the_values_are() -> None:
    values = np.array([-np.inf, -2, -1e-40, -0.0, 0.0, 1e-40, 0.5, np.nextafter(np.float32(0.5), 1), 7], np.float32)
    keys = to_keys(values).astype(np.int64)
    assert keys[3] == keys[4]
    assert (np.diff(np.delete(keys, 3)) > 0).all()


def test_metrics_may_be_asked_for_in_between() -> None:
    masks, maps = random_case(2)
    with PixelRanking() as pixels:
        for number, (mask, anomaly_map) in enumerate(zip(masks, maps, strict=True), start=1):
            pixels.add(mask, anomaly_map)
            assert pixels.result().pixel == pytest.approx(ranked(masks[:number], maps[:number]).pixel, **exactly)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (np.zeros((0, 4, 4), bool), "no pixel"),
        (np.zeros((2, 4, 4), bool), "no anomalous pixel"),
        (np.ones((2, 4, 4), bool), "no normal pixel"),
    ],
)
def test_what_is_undefined_has_a_reason(masks: np.ndarray, reason: str) -> None:
    found = ranked(masks, np.zeros(masks.shape, np.float32))
    assert set(found.pixel.values()) | set(found.aupro.values()) == {None}
    assert found.curve is None
    assert found.undefined == {"pixel": reason}


def test_constant_maps_leave_only_the_official_aupro_undefined() -> None:
    masks = random_case(3)[0]
    found = ranked(masks, np.full(masks.shape, 0.25, np.float32))
    assert found.pixel["auroc"] == 0.5
    assert found.aupro == {"official": None, "standard": pytest.approx(0.15)}
    assert found.undefined == {"official": "fewer than two FPRs below 0.3"}


def test_images_of_different_sizes_are_ranked_together() -> None:
    masks, maps = random_case(4)
    with PixelRanking() as pixels:
        for mask, anomaly_map in zip(masks, maps, strict=True):
            pixels.add(mask[:12], anomaly_map[:12])
            pixels.add(mask[12:], anomaly_map[12:])
        assert pixels.result().pixel == pytest.approx(pixel_metrics(masks, maps), **exactly)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused(bad: float) -> None:
    with PixelRanking() as pixels, pytest.raises(ValueError, match="finite"):
        pixels.add(np.zeros((1, 2), bool), np.array([[0, bad]], np.float32))


def test_other_shapes_and_types_are_refused() -> None:
    with PixelRanking() as pixels:
        with pytest.raises(ValueError, match=r"of one shape, got \(2, 2\) and \(2, 3\)"):
            pixels.add(np.zeros((2, 2), bool), np.zeros((2, 3), np.float32))
        with pytest.raises(ValueError, match="got bool and float64"):
            pixels.add(np.zeros((2, 2), bool), np.zeros((2, 2)))


def test_memory_does_not_grow_with_the_number_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "RUN", 1 << 12)
    rng = np.random.default_rng(0)
    masks = rng.random((4, 64, 64)) < 0.2
    maps = rng.random(masks.shape, np.float32) + np.float32(0.5)

    def run(images: int) -> None:
        with PixelRanking() as pixels:
            for number in range(images):
                pixels.add(masks[number % 4], maps[number % 4])
            pixels.result()

    run(4)
    fewer, more = (traced_peak(partial(run, images)) for images in (400, 800))
    assert more < fewer + 1_000_000  # the pixels of the other 400 are 8 MB; threads of other tests allocate, too
