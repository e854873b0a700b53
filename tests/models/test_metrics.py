"""Metrics against the published values, against scikit-learn, and against their slow, obvious twins."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.measure import label, regionprops
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from models.metrics import aupro, image_metrics, pixel_metrics, pro_curve, rank

GOLDEN = np.load(Path(__file__).parent / "data" / "metrics.npz")
NOTHING = {"auroc": None, "ap": None, "f1_max": None}
exactly = {"rel": 0, "abs": 1e-9}


def slow_official_aupro(masks, maps):
    """The published procedure: every threshold, every image, every region."""
    low, high = maps.min(), maps.max()
    fprs, pros = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        binary = maps > threshold
        overlaps = [
            binary_map[region.coords[:, 0], region.coords[:, 1]].sum() / region.area
            for binary_map, mask in zip(binary, masks, strict=True)
            for region in regionprops(label(mask))
        ]
        fprs.append((binary & (masks == 0)).sum() / (masks == 0).sum())
        pros.append(np.mean(overlaps))
    fprs, pros = np.array(fprs), np.array(pros)
    kept = fprs < 0.3
    fprs = fprs[kept]
    return auc((fprs - fprs.min()) / (fprs.max() - fprs.min()), pros[kept])


def slow_pro_curve(masks, maps):
    """From (0, 0), one point for each distinct value of the maps."""
    regions = [(i, labels == k) for i, labels in enumerate(map(label, masks)) for k in range(1, labels.max() + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        fpr = (maps[masks == 0] >= threshold).mean()
        points.append((fpr, np.mean([(maps[i][region] >= threshold).mean() for i, region in regions])))
    return np.array(points).T


def slow_standard_aupro(masks, maps, limit=0.3):
    """Segment by segment; the one that crosses the limit is cut there."""
    fpr, pro = slow_pro_curve(masks, maps)
    area = 0.0
    for x0, x1, y0, y1 in zip(fpr[:-1], fpr[1:], pro[:-1], pro[1:], strict=True):
        if x1 > limit:
            return (area + (limit - x0) * (y0 + y0 + (y1 - y0) * (limit - x0) / (x1 - x0)) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def slow_f1_max(labels, scores):
    best = 0.0
    for threshold in np.unique(scores):
        predicted = scores >= threshold
        hits = (predicted & labels).sum()
        best = max(best, 2 * hits / (predicted.sum() + labels.sum()))
    return best


def random_case(seed, shape=(3, 12, 14), values=None, share=0.2, dtype=np.float32):
    """Ragged random regions; maps that know a little about them, on `values` distinct levels if given."""
    rng = np.random.default_rng(seed)
    masks = (rng.random(shape) < share).astype(np.uint8)
    maps = rng.random(shape) + 0.4 * masks * rng.random(shape)
    if values:
        maps = np.floor(maps * values) / values
    return masks, maps.astype(dtype)


CASES = {
    "distinct": random_case(0),
    "ties": random_case(1, values=12),
    "few_levels": random_case(2, values=5),
    "one_image": random_case(3, shape=(1, 20, 9)),
    "one_pixel_images": random_case(4, shape=(40, 1, 1)),
    "mostly_anomalous": random_case(5, share=0.9),
    "float64": random_case(6, dtype=np.float64),
    "float16": random_case(7, dtype=np.float16),
    "large_offset": (random_case(8)[0], random_case(8)[1] + np.float32(1000)),
    "negative": (random_case(9)[0], random_case(9)[1] - np.float32(5)),
    "most_at_the_minimum": (random_case(12)[0], np.maximum(random_case(12)[1], np.float32(0.9))),
    "fpr_exactly_at_the_limit": (
        np.array([[[0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0]]]),  # three regions, ten pixels of background
        np.array([[[200, 195, 190, 180, 150, 100, 90, 185, 80, 70, 60, 50, 40, 0]]], np.float32),  # a threshold each
    ),
}
every_case = pytest.mark.parametrize(("masks", "maps"), CASES.values(), ids=CASES.keys())


@pytest.mark.parametrize("case", ["0", "1"])
def test_the_published_values_are_met(case):
    masks, maps, labels, scores = (GOLDEN[f"{case}/{key}"] for key in ("masks", "maps", "labels", "scores"))
    image, pixel = image_metrics(labels, scores), pixel_metrics(masks[:, 0], maps)
    assert image["auroc"] == pytest.approx(float(GOLDEN[f"{case}/image-auroc"]), **exactly)
    assert image["ap"] == pytest.approx(float(GOLDEN[f"{case}/image-ap"]), **exactly)
    assert pixel["auroc"] == pytest.approx(float(GOLDEN[f"{case}/pixel-auroc"]), **exactly)
    assert aupro(masks[:, 0], maps) == pytest.approx(float(GOLDEN[f"{case}/pixel-aupro"]), **exactly)


@every_case
def test_auroc_and_ap_equal_scikit_learn(masks, maps):
    truth, scores = masks.ravel(), maps.ravel()
    for metrics in (pixel_metrics(masks, maps), image_metrics(truth, scores)):
        assert metrics["auroc"] == pytest.approx(roc_auc_score(truth, scores), **exactly)
        assert metrics["ap"] == pytest.approx(average_precision_score(truth, scores), **exactly)


@every_case
def test_f1_max_is_the_best_of_all_thresholds(masks, maps):
    expected = slow_f1_max(masks.ravel() == 1, maps.ravel())
    assert pixel_metrics(masks, maps)["f1_max"] == pytest.approx(expected, **exactly)


@every_case
def test_official_aupro_equals_the_published_procedure(masks, maps):
    assert aupro(masks, maps) == pytest.approx(slow_official_aupro(masks, maps), **exactly)


@every_case
def test_standard_aupro_equals_brute_force_over_all_thresholds(masks, maps):
    assert aupro(masks, maps, definition="standard") == pytest.approx(slow_standard_aupro(masks, maps), **exactly)


@every_case
def test_curves_pass_through_every_point_of_the_slow_ones(masks, maps):
    """A point of the slow curve lies on a segment of ours: between the lowest and highest rate at its FPR."""

    def assert_on(curve, fprs, rates):
        fpr, rate = curve
        for x, y in zip(fprs, rates, strict=True):
            at = np.isclose(fpr, x, rtol=0, atol=1e-12)
            low, high = (rate[at].min(), rate[at].max()) if at.any() else [np.interp(x, fpr, rate)] * 2
            assert low - 1e-9 <= y <= high + 1e-9

    assert_on(pro_curve(masks, maps), *slow_pro_curve(masks, maps))
    assert_on(rank(masks, maps).roc(), *roc_curve(masks.ravel(), maps.ravel(), drop_intermediate=False)[:2])


def test_precision_and_recall_are_those_of_scikit_learn_at_the_thresholds():
    masks, maps = CASES["ties"]
    ranked = rank(masks, maps)
    precision, recall, thresholds = precision_recall_curve(masks.ravel(), maps.ravel())
    at = np.searchsorted(thresholds, ranked.thresholds)
    np.testing.assert_array_equal(thresholds[at], ranked.thresholds)
    np.testing.assert_allclose(ranked.precision_recall(), (precision[at], recall[at]), rtol=0, atol=1e-12)


def test_counting_in_several_blocks_changes_nothing(monkeypatch):
    masks, maps = random_case(10, shape=(40, 12, 12), share=0.01, dtype=np.float64)
    whole = pixel_metrics(masks, maps), aupro(masks, maps), aupro(masks, maps, "standard")
    monkeypatch.setattr("models.metrics.SMALLEST_BLOCK", 1)
    assert (pixel_metrics(masks, maps), aupro(masks, maps), aupro(masks, maps, "standard")) == whole
    assert whole[0]["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), **exactly)


def test_regions_that_touch_at_a_corner_count_as_one():
    """Of 1 + 3 pixels the single one is found first: 1/4 of one region, where 4-connectivity has 1/2 of two."""
    masks, maps = np.zeros((1, 8, 8)), np.zeros((1, 8, 8))
    masks[0, 1, 1] = masks[0, 2, 2] = masks[0, 2, 3] = masks[0, 3, 3] = 1
    maps[0, 1, 1] = 1
    fpr, pro = pro_curve(masks, maps)
    assert pro[fpr == 0].max() == 0.25


def test_regions_of_neighbouring_images_stay_apart_and_count_alike_whatever_their_area():
    masks, maps = np.zeros((2, 8, 8)), np.zeros((2, 8, 8))
    masks[0, 1, 1] = maps[0, 1, 1] = 1
    masks[1, 1:5, 1:5] = 1
    fpr, pro = pro_curve(masks, maps)
    assert pro[fpr == 0].max() == 0.5


@every_case
@pytest.mark.parametrize("factor", [4, 0.25])
def test_scores_scaled_by_a_power_of_two_give_the_same_metrics(masks, maps, factor):
    scaled = maps * maps.dtype.type(factor)
    assert pixel_metrics(masks, scaled) == pixel_metrics(masks, maps)
    for definition in ("official", "standard"):
        assert aupro(masks, scaled, definition) == pytest.approx(aupro(masks, maps, definition), **exactly)


def test_a_perfect_ranking_scores_one():
    assert image_metrics([0, 1, 0, 1], [0.1, 0.7, 0.2, 0.9]) == {"auroc": 1.0, "ap": 1.0, "f1_max": 1.0}


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []], ids=["all_normal", "all_anomalous", "no_image"])
def test_image_metrics_are_none_where_only_one_class_is_present(labels):
    assert image_metrics(labels, np.arange(len(labels))) == NOTHING


@pytest.mark.parametrize(
    "masks",
    [np.zeros((2, 4, 4)), np.ones((2, 4, 4)), np.zeros((0, 4, 4)), np.zeros((2, 0, 0))],
    ids=["no_region", "no_background", "no_image", "no_pixel"],
)
def test_pixel_metrics_are_none_where_only_one_class_is_present(masks):
    maps = np.arange(masks.size, dtype=np.float32).reshape(masks.shape)
    assert pixel_metrics(masks, maps) == NOTHING
    assert aupro(masks, maps) is None
    assert aupro(masks, maps, "standard") is None
    assert pro_curve(masks, maps) is None
    assert rank(masks, maps) is None


def test_official_aupro_of_constant_maps_is_none_and_the_others_are_chance():
    masks, maps = np.zeros((2, 4, 4)), np.full((2, 4, 4), 0.5, np.float32)
    masks[0, 0, :2] = 1
    assert aupro(masks, maps) is None
    assert pixel_metrics(masks, maps)["auroc"] == 0.5
    assert aupro(masks, maps, "standard") == pytest.approx(0.15)  # of the diagonal up to 0.3: 0.3 * 0.3 / 2 / 0.3


def test_official_aupro_is_none_if_all_points_below_the_limit_have_one_fpr():
    masks = np.zeros((1, 4, 4))
    masks[0, 0, 0] = 1
    two_levels = np.ones((1, 4, 4))
    two_levels[0, 0, 0] = 2  # every threshold: FPR 0
    assert aupro(masks, two_levels) is None
    assert aupro(masks, 3 - two_levels) is None  # every threshold: FPR 1, none is left
    assert aupro(masks, two_levels, "standard") == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_maps_too_flat_for_two_hundred_steps_are_none(dtype):
    masks, maps = np.zeros((1, 4, 4)), np.zeros((1, 4, 4), dtype)
    masks[0, 0, 0] = 1
    maps[0, 0, :2] = np.finfo(dtype).smallest_subnormal
    assert aupro(masks, maps) is None


@pytest.mark.parametrize("as_given", [np.asarray, torch.from_numpy, np.ndarray.tolist], ids=["numpy", "torch", "lists"])
@pytest.mark.parametrize("mask_dtype", [bool, np.uint8, np.int64, np.float32])
def test_masks_and_maps_may_be_arrays_tensors_or_lists(as_given, mask_dtype):
    masks, maps = CASES["float64"]
    given = as_given(masks.astype(mask_dtype)), as_given(maps)
    assert pixel_metrics(*given) == pixel_metrics(masks, maps)
    assert aupro(*given) == aupro(masks, maps)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64])
def test_whole_number_maps_are_ranked_without_overflow(dtype):
    masks, maps = random_case(11)
    maps = (maps > 1) if dtype is bool else (maps * 180 - (128 if dtype is np.int8 else 0)).astype(dtype)
    assert pixel_metrics(masks, maps) == pixel_metrics(masks, maps.astype(float))
    assert aupro(masks, maps) == aupro(masks, maps.astype(float))
    assert aupro(masks, maps, "standard") == aupro(masks, maps.astype(float), "standard")


def test_masks_are_anomalous_above_one_half():
    maps = np.array([[[0.3, 0.1, 0.2, 0.9]]])
    assert pixel_metrics([[[0.0, 0.5, 0.51, 1.0]]], maps) == pixel_metrics([[[0, 0, 1, 1]]], maps)
    assert pixel_metrics([[[0, 0, 255, 255]]], maps) == pixel_metrics([[[0, 0, 1, 1]]], maps)


def test_a_channel_axis_of_one_is_dropped():
    masks, maps = CASES["distinct"]
    assert pixel_metrics(masks[:, None], maps) == pixel_metrics(masks, maps)
    assert aupro(masks[:, None], maps[:, None]) == aupro(masks, maps)


def test_views_are_read_as_they_lie_and_nothing_is_written():
    masks, maps = CASES["ties"]
    turned_masks, turned_maps = masks.transpose(0, 2, 1)[::-1], maps.transpose(0, 2, 1)[::-1]
    before = masks.copy(), maps.copy()
    assert pixel_metrics(turned_masks, turned_maps) == pixel_metrics(masks, maps)
    assert aupro(turned_masks, turned_maps) == pytest.approx(aupro(masks, maps), **exactly)
    np.testing.assert_array_equal(masks, before[0])
    np.testing.assert_array_equal(maps, before[1])


@pytest.mark.parametrize("metric", [pixel_metrics, aupro, pro_curve])
@pytest.mark.parametrize("shapes", [((2, 4, 4), (2, 4, 5)), ((4, 4), (4, 4)), ((2, 3, 4, 4), (2, 3, 4, 4))])
def test_masks_and_maps_of_other_shapes_are_refused(metric, shapes):
    with pytest.raises(ValueError, match=r"^Expected masks and maps \(N, H, W\) of one shape, got .*\.$"):
        metric(np.zeros(shapes[0]), np.zeros(shapes[1]))


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((3, 1), (3, 1)), ((), ())])
def test_labels_and_scores_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"^Expected labels and scores \(N,\) of one shape, got .*\.$"):
        image_metrics(np.zeros(shapes[0]), np.zeros(shapes[1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        image_metrics([0, 1, 0], [0.1, bad, 0.3])


def test_an_unknown_definition_is_refused():
    with pytest.raises(ValueError, match="'official' and 'standard', not 'offical'"):
        aupro(*CASES["distinct"], definition="offical")


def test_labels_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="Labels must be numbers"):
        image_metrics(np.array([np.nan, 1, 0]), np.array([0.1, 0.2, 0.3]))
