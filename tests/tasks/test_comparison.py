"""Runs are compared on the same images only; differences are those of the metrics, their intervals are paired."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image, ImageOps

from models.intervals import bootstrap_image_metrics, interval
from models.metrics import image_metrics
from tasks.comparison import compare_runs
from tasks.errors import InputError
from tasks.evaluation import IMAGE_METRICS, METRICS, PIXEL_METRICS, mean_over_classes
from tasks.registry import tracked_run
from tests.tasks.conftest import Versions, evaluated_classes, scored_images, segmented_images


def test_differences_are_those_of_the_metrics_and_their_mean_over_classes(versions: Versions) -> None:
    before, after = (scored_images(60, noise, "xy") for noise in (0.8, 0.2))
    summary = compare_runs.fn(
        versions.store.uri, [versions.evaluated(versions.models[n], rows) for n, rows in enumerate((before, after))]
    )
    found = {(d.class_name, d.metric): d.value for d in summary.differences}
    expected = {}
    for name in "xy":
        b, a = (
            image_metrics(rows["label"], rows["score"])
            for rows in (part[part["class_name"] == name] for part in (before, after))
        )
        expected |= {(name, f"image_{metric}"): a[metric] - b[metric] for metric in a}
    for metric in ("image_auroc", "image_ap", "image_f1_max"):
        expected["mean", metric] = np.mean([expected[name, metric] for name in "xy"])
    assert found == pytest.approx(expected)
    assert [(row.class_name, row.images) for row in summary.metrics[::2]] == [("x", 30), ("y", 30), ("mean", 60)]


def test_intervals_are_paired_and_hold_the_difference(versions: Versions) -> None:
    """Where two models err on the same images the difference is surer than the metrics are."""
    before = scored_images(300, 0.0)
    after = before.assign(score=before["score"] + np.random.default_rng(1).normal(0, 0.05, 300))
    summary = compare_runs.fn(
        versions.store.uri, [versions.evaluated(versions.models[n], rows) for n, rows in enumerate((before, after))]
    )
    auroc = summary.differences[0]
    assert (auroc.class_name, auroc.metric) == ("a", "image_auroc")
    assert auroc.low < auroc.value < auroc.high
    alone = interval(bootstrap_image_metrics(before["label"], before["score"])["auroc"])
    assert auroc.high - auroc.low < (alone[1] - alone[0]) / 2


def test_a_model_does_not_differ_from_itself(versions: Versions) -> None:
    run = versions.evaluated(versions.models[0], scored_images(40, 0.5, "xy"))
    summary = compare_runs.fn(versions.store.uri, [run, run])
    assert {(d.value, d.low, d.high) for d in summary.differences} == {(0.0, 0.0, 0.0)}


def test_a_class_of_one_label_takes_no_part_in_differences(versions: Versions) -> None:
    rows = scored_images(40, 0.5, "xy")
    rows.loc[rows["class_name"] == "y", "label"] = 0
    run = versions.evaluated(versions.models[0], rows)
    summary = compare_runs.fn(versions.store.uri, [run, run])
    assert {d.class_name for d in summary.differences} == {"x"}
    rows["label"] = 0
    assert compare_runs.fn(versions.store.uri, [versions.evaluated(versions.models[0], rows)] * 2).differences == []


def test_pixel_metrics_differ_by_what_was_drawn_for_both(versions: Versions, tmp_path: Path) -> None:
    """In class x alone some images are normal."""
    runs, classes = [], []
    for model, noise in zip(versions.models, (0.5, 0.4), strict=False):
        rows, grids = segmented_images(40, noise, tmp_path, "xy")
        rows.loc[(rows["class_name"] == "x") & (rows.index % 2 == 0), ["label", "mask_uri"]] = [0, None]
        runs.append(versions.evaluated(model, rows, grids=grids))
        classes.append(evaluated_classes(rows, grids))
    found = {(d.class_name, d.metric): d for d in compare_runs.fn(versions.store.uri, runs).differences}
    expected = [(name, metric) for name, metrics in (("x", METRICS), ("y", PIXEL_METRICS)) for metric in metrics]
    assert list(found) == [*expected, *(("mean", metric) for metric in METRICS)]
    before, after = ({each.metrics.class_name: each for each in evaluated} for evaluated in classes)
    for name, metric in expected:
        difference = found[name, metric]
        value = getattr(after[name].metrics, metric) - getattr(before[name].metrics, metric)
        assert difference.value == pytest.approx(value)
        moved = interval(after[name].draws[metric] - before[name].draws[metric])
        assert (difference.low, difference.high) == pytest.approx(moved)
    mean = {m: np.subtract(*(getattr(mean_over_classes(c), m) for c in classes[::-1])) for m in METRICS}
    assert {metric: found["mean", metric].value for metric in METRICS} == pytest.approx(mean)


def test_pixel_metrics_of_other_images_are_not_paired(versions: Versions, tmp_path: Path) -> None:
    """A mask more than before: the images of the first run's resamples are not those of the second's."""
    rows, grids = segmented_images(40, 0.5, tmp_path, "xy")
    rows.loc[1::2, "label"], rows.loc[1::2, "mask_uri"] = 0, None
    fewer = rows.copy()
    fewer.loc[0, "mask_uri"] = None  # of class x
    first, other = (versions.evaluated(versions.models[0], part, grids=grids) for part in (fewer, rows))
    metrics = {name: [] for name in ("x", "y", "mean")}
    for difference in compare_runs.fn(versions.store.uri, [first, other]).differences:
        metrics[difference.class_name].append(difference.metric)
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert metrics == {"x": [*IMAGE_METRICS], "y": [*METRICS], "mean": [*METRICS]}


def test_pixel_metrics_against_other_masks_are_not_paired(versions: Versions, tmp_path: Path) -> None:
    """A mask that was drawn anew in its place: the manifest is the same, and what was measured is not."""
    rows, grids = segmented_images(40, 0.5, tmp_path, "x")
    rows.loc[1::2, "label"], rows.loc[1::2, "mask_uri"] = 0, None
    first = versions.evaluated(versions.models[0], rows, grids=grids)
    mask = Path(rows["mask_uri"].dropna().iloc[0].removeprefix("file://"))
    ImageOps.invert(Image.open(mask)).save(mask)
    other = versions.evaluated(versions.models[0], rows, grids=grids)
    compared = {difference.metric for difference in compare_runs.fn(versions.store.uri, [first, other]).differences}
    assert compared == {*IMAGE_METRICS}


@pytest.mark.parametrize("change", ["collection", "images", "labels"])
def test_runs_on_something_else_are_refused(versions: Versions, change: str) -> None:
    rows = scored_images(40, 0.5)
    first = versions.evaluated(versions.models[0], rows)
    other, collection, message = {
        "collection": (rows, "another", "'reference' and .* 'another'"),
        "images": (rows.iloc[1:], "reference", "39 of their 40 and 39 labelled images are the same"),
        "labels": (rows.assign(label=1 - rows["label"]), "reference", "0 of their 40 and 40 labelled images"),
    }[change]
    with pytest.raises(InputError, match=message):
        compare_runs.fn(
            versions.store.uri, [first, versions.evaluated(versions.models[1], other, collection=collection)]
        )


def test_a_run_is_found_by_how_its_id_begins(versions: Versions) -> None:
    rows = scored_images(10, 0.5)
    run = versions.evaluated(versions.models[0], rows)
    summary = compare_runs.fn(versions.store.uri, [run[:12], run])
    assert {row.run_id for row in summary.metrics} == {run}
    letters = {run[0]}
    while True:  # at most 16 times: ids are hexadecimal
        with tracked_run(versions.store, "evaluate", {}) as other:
            mlflow.set_tag("step", "evaluate")
        if other[0] in letters:
            break
        letters.add(other[0])
    with pytest.raises(InputError, match=f"2 evaluation runs begin with '{other[0]}'"):
        compare_runs.fn(versions.store.uri, [other[0], run])


def test_what_is_no_finished_evaluation_is_refused(versions: Versions) -> None:
    with tracked_run(versions.store, "train", {}) as training:
        pass
    failed = versions.evaluated(versions.models[0], scored_images(20, 0.5))
    versions.client.set_terminated(failed, "FAILED")
    for run in (training, failed, "%", "", "' or 1 = 1"):
        with pytest.raises(InputError, match="there is no finished evaluation run"):
            compare_runs.fn(versions.store.uri, [run, run])
