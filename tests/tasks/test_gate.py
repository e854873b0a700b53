"""The gate lets pass what is shown to be no worse than the champion by the margin, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tasks.errors import InputError
from tasks.gate import Gate, pass_gate
from tasks.registry import CHAMPION, MODEL_NAME
from tests.tasks.conftest import Versions, scored_images, segmented_images


def gate(
    versions: Versions, margin: float = 0.01, force: bool = False, reference: str | None = "reference",
    metric: str = "image_auroc",
) -> Gate:  # fmt: skip
    """Of version 2."""
    return pass_gate.fn(versions.store.uri, versions.models[1], reference, metric, margin, force)


@pytest.mark.parametrize(
    ("images", "champion", "candidate", "passed", "reason"),
    [
        (400, 0.6, 0.2, True, "it is not worse by more than 0.01"),
        (400, 0.4, 0.4, True, "it is not worse by more than 0.01"),
        (400, 0.2, 1.5, False, "it is worse by more than 0.01"),
        (30, 0.6, 0.8, False, "so few images do not show that it is not worse by more than 0.01"),
    ],
)
def test_a_version_passes_that_is_shown_to_be_no_worse(
    versions: Versions, images: int, champion: float, candidate: float, passed: bool, reason: str
) -> None:
    runs = [
        versions.evaluated(versions.models[n], scored_images(images, noise, "xy"))
        for n, noise in enumerate((champion, candidate))
    ]
    found = gate(versions)
    assert (found.passed, [found.champion_run, found.run], found.champion) == (passed, runs, "1")
    assert found.reason.endswith(reason)


def test_the_lower_end_of_the_interval_decides(versions: Versions) -> None:
    for model, noise in zip(versions.models, (0.3, 0.4), strict=False):
        versions.evaluated(model, scored_images(200, noise))
    difference = gate(versions).difference
    assert difference
    assert difference.low < 0
    assert gate(versions, margin=-difference.low).passed
    assert not gate(versions, margin=-difference.low - 1e-9).passed


def test_without_an_evaluation_the_way_to_one_is_said(versions: Versions) -> None:
    with pytest.raises(InputError, match="evaluate --collection reference --model models:/anomalyclip/2"):
        gate(versions)
    versions.evaluated(versions.models[1], scored_images(20, 0.5))
    with pytest.raises(InputError, match="evaluate --collection reference --model models:/anomalyclip/1"):
        gate(versions)
    failed = versions.evaluated(versions.models[0], scored_images(20, 0.5))
    versions.client.set_terminated(failed, "FAILED")
    with pytest.raises(InputError, match="has no evaluation"):
        gate(versions)


def test_the_newest_state_that_both_have_evaluated_counts(versions: Versions) -> None:
    champion, candidate, _ = versions.models
    worse, better = scored_images(400, 1.5), scored_images(400, 0.1)
    versions.evaluated(champion, worse, state="a")
    with pytest.raises(InputError, match="has no evaluation"):
        gate(versions)
    versions.evaluated(candidate, better, state="b")
    with pytest.raises(InputError, match=r"different states of 'reference': run .*anomalyclip/2 && .*anomalyclip/1"):
        gate(versions)
    versions.evaluated(candidate, worse, state="a")
    expected = versions.evaluated(candidate, better, state="a")
    versions.evaluated(candidate, worse, state="c")
    assert gate(versions).run == expected


def test_evaluations_of_different_images_are_refused(versions: Versions) -> None:
    rows = scored_images(40, 0.5)
    versions.evaluated(versions.models[0], rows)
    versions.evaluated(versions.models[1], rows.iloc[:30])
    with pytest.raises(InputError, match="30 of their 40 and 30 labelled images are the same"):
        gate(versions)


def test_a_reference_of_one_label_decides_nothing(versions: Versions) -> None:
    rows = scored_images(40, 0.5).assign(label=0)
    for model in versions.models:
        versions.evaluated(model, rows)
    with pytest.raises(InputError, match="has both normal and anomalous images"):
        gate(versions)


@pytest.mark.parametrize(
    ("candidate", "passed", "reason"),
    [(0.4, True, "it is not worse by more than 0.01"), (1.5, False, "it is worse by more than 0.01")],
)
def test_a_reference_without_normal_images_decides_by_a_pixel_metric(
    versions: Versions, tmp_path: Path, candidate: float, passed: bool, reason: str
) -> None:
    for model, noise in zip(versions.models, (0.4, candidate), strict=False):
        rows, grids = segmented_images(40, noise, tmp_path, "xy")
        versions.evaluated(model, rows, grids=grids)
    for metric in ("pixel_auroc", "aupro"):
        found = gate(versions, metric=metric)
        assert (found.passed, found.difference.class_name, found.difference.metric) == (passed, "mean", metric)
        assert found.reason.startswith(f"{metric} on reference: ")
        assert found.reason.endswith(reason)
    with pytest.raises(InputError, match="no class of 'reference' has both normal and anomalous images"):
        gate(versions)


def test_a_pixel_metric_decides_nothing_where_a_run_has_none(versions: Versions, tmp_path: Path) -> None:
    rows, grids = segmented_images(10, 0.5, tmp_path)
    versions.evaluated(versions.models[0], rows, grids=grids)
    versions.evaluated(versions.models[1], rows)
    with pytest.raises(InputError, match=r"has pixel_ap in both evaluations, .*; evaluate both again"):
        gate(versions, metric="pixel_ap")


def test_a_reference_has_to_be_named_once(versions: Versions) -> None:
    with pytest.raises(InputError, match="--reference COLLECTION"):
        gate(versions, reference=None)
    versions.client.set_registered_model_tag(MODEL_NAME, "reference", "kept")
    with pytest.raises(InputError, match="has no evaluation on 'kept'"):
        gate(versions, reference=None)
    with pytest.raises(InputError, match="is no name for a collection"):
        gate(versions, reference="' or 1 = 1")


def test_where_there_is_no_champion_an_evaluation_is_enough(versions: Versions) -> None:
    versions.client.delete_registered_model_alias(MODEL_NAME, CHAMPION)
    with pytest.raises(InputError, match="has no evaluation"):
        gate(versions)
    run = versions.evaluated(versions.models[1], scored_images(20, 0.5))
    found = gate(versions)
    assert (found.passed, found.run, found.champion, found.difference) == (True, run, None, None)


def test_by_force_what_cannot_be_compared_is_a_gate_that_is_not_passed(versions: Versions) -> None:
    found = gate(versions, force=True)
    assert (found.passed, found.difference) == (False, None)
    assert "has no evaluation" in found.reason


def test_the_champion_cannot_be_promoted(versions: Versions) -> None:
    with pytest.raises(InputError, match="is the champion already"):
        pass_gate.fn(versions.store.uri, versions.models[0], "reference", "image_auroc", np.inf, True)


def test_a_class_that_cannot_be_compared_is_not_left_out(versions: Versions, tmp_path: Path) -> None:
    """Masks of one class were drawn anew between the two evaluations."""
    rows, grids = segmented_images(40, 0.5, tmp_path, "xy")
    rows.loc[1::2, "label"], rows.loc[1::2, "mask_uri"] = 0, None
    first = int(np.flatnonzero(rows["mask_uri"].notna() & (rows["class_name"] == "x"))[0])
    mask = tmp_path / "own.png"
    shutil.copy(tmp_path / "mask.png", mask)
    rows.loc[first, "mask_uri"] = mask.as_uri()
    versions.evaluated(versions.models[0], rows, grids=grids)
    ImageOps.invert(Image.open(mask)).save(mask)
    versions.evaluated(versions.models[1], rows, grids=grids)
    assert gate(versions).difference
    with pytest.raises(InputError, match="pixel_auroc of x cannot be compared"):
        gate(versions, metric="pixel_auroc")
