"""Two versions on a reference: compared, held back or let through by the gate, and rolled back."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from flows.commands import difference_lines
from models import Detector
from models.backbone import load_backbone
from models.embedded.generator import SPLIT, scene
from models.prompts import PromptLearner
from tasks.comparison import ComparedMetrics, CompareSummary, Difference
from tasks.registry import register_bundle, tracked_run
from tasks.store import Store
from tests.flows.conftest import Command, write_images


def register(store: Store, folder: Path, seed: int) -> str:
    """A version with untrained prompts."""
    torch.manual_seed(seed)
    backbone = load_backbone("embedded", 96)
    bundle = Detector.build(backbone, PromptLearner(backbone), 96, (4,), 2).save(folder / f"bundle-{seed}")
    with tracked_run(store, "train", {}) as run_id:
        return register_bundle(store, bundle, run_id, "of the tests").uri


def test_a_reference_without_normal_images_is_judged_by_its_pixels(anomalyclip: Command, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["image,label,mask"]
    for number in range(6):
        made = scene(SPLIT["auxiliary"][0], 96, number, n_damaged=1)
        Image.fromarray(made.damaged[0]).save(folder / f"{number}.png")
        Image.fromarray(made.masks[0]).save(folder / f"mask-{number}.png")
        lines.append(f"{number}.png,1,mask-{number}.png")
    (folder / "labels.csv").write_text("\n".join(lines))
    anomalyclip("ingest", str(folder), "--collection", "parts", "--layout", "labels")
    for seed in (1, 2):
        model = register(Store(str(tmp_path / "store")), tmp_path, seed)
        anomalyclip("score", "--collection", "parts", "--model", model)
    run = anomalyclip("evaluate", "--collection", "parts", "--model", "models:/anomalyclip/1", "--json").json
    low, high = run["metrics"][0]["intervals"]["pixel_auroc"]
    assert low < run["metrics"][0]["pixel_auroc"] < high
    table = anomalyclip("evaluate", "--collection", "parts", "--model", "models:/anomalyclip/2").out
    runs = [run["mlflow_run"], table.split()[-1]]

    compared = anomalyclip("compare", *runs, "--json").json
    before, after = (row["pixel_auroc"] for row in compared["metrics"])
    assert f"{after:.3f} [" in table
    (moved,) = (difference for difference in compared["differences"] if difference["metric"] == "pixel_auroc")
    assert abs(moved["value"] - (after - before)) < 1e-12
    shown = anomalyclip("compare", *runs).out
    assert f"{moved['value']:+.4f} [{moved['low']:+.4f}, {moved['high']:+.4f}]" in shown

    of_images = anomalyclip("promote", "2", "--reference", "parts")
    assert (of_images.code, "has both normal and anomalous images" in of_images.err) == (2, True)
    of_pixels = ("promote", "2", "--reference", "parts", "--metric", "pixel_auroc")
    assert anomalyclip(*of_pixels, f"--margin={-moved['low'] - 1e-6:.9f}").code == 1
    assert anomalyclip(*of_pixels, f"--margin={-moved['low'] + 1e-6:.9f}").code == 0


def test_why_there_are_no_differences_is_said() -> None:
    row = ComparedMetrics("nut", "a", "models:/anomalyclip/1", 4, *[None] * 8)
    nothing = CompareSummary("parts", 4, "official", [row], [])
    assert difference_lines(nothing, {})[0].startswith("there are no differences: no class has both normal and")
    (unpaired,) = difference_lines(replace(nothing, metrics=[replace(row, pixel_auroc=0.5)]), {})
    assert unpaired.endswith("did not draw the same images for them; evaluate both again")
    of_images = replace(nothing, metrics=[replace(row, pixel_auroc=0.5)], differences=[
        Difference("nut", "b", "image_auroc", 0.1, 0.0, 0.2)
    ])  # fmt: skip
    assert difference_lines(of_images, {"class_name": "class"}) == [
        "differences to run a, with 95 % intervals of a paired bootstrap over the images",
        "class                 image AUROC  AP  F1-max\nnut    +0.1000 [+0.0000, +0.2000]   –       –",
        unpaired,
    ]


def test_a_class_that_is_called_mean_is_compared_beside_the_mean() -> None:
    row = ComparedMetrics("mean", "a", "models:/anomalyclip/1", 4, *[None] * 8)
    found = [Difference("mean", "b", "image_auroc", value, 0.0, 0.3) for value in (0.1, 0.2)]
    table = difference_lines(CompareSummary("parts", 4, "official", [row, row], found), {})[1]
    assert ("+0.1000" in table, "+0.2000" in table) == (True, True)


def test_a_second_version_goes_through_the_gate_and_back(anomalyclip: Command, tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(12))
    anomalyclip("ingest", str(tmp_path / "images"), "--collection", "parts", "--layout", "folders")
    runs = []
    for seed in (1, 2):
        model = register(Store(str(tmp_path / "store")), tmp_path, seed)
        anomalyclip("score", "--collection", "parts", "--model", model)
        if seed == 2:
            refused = anomalyclip("promote", "2", "--reference", "parts")
            assert (refused.code, refused.out) == (2, "")
            assert f"anomalyclip evaluate --collection parts --model {model}" in refused.err
        runs.append(anomalyclip("evaluate", "--collection", "parts", "--model", model, "--json").json)

    compared = anomalyclip("compare", *(run["mlflow_run"] for run in runs), "--json").json
    before, after = (run["metrics"][0]["image_auroc"] for run in runs)
    assert [row["image_auroc"] for row in compared["metrics"]] == [before, after]
    (auroc,) = (row for row in compared["differences"] if row["metric"] == "image_auroc")
    assert abs(auroc["value"] - (after - before)) < 1e-12
    table = anomalyclip("compare", *(run["mlflow_run"][:10] for run in runs)).out
    assert "image AUROC     AP  F1-max" in table
    assert "pixel" not in table  # none of their metrics is defined
    assert f"differences to run {runs[0]['mlflow_run']}" in table

    margin = -auroc["low"]
    held_back = anomalyclip("promote", "2", "--reference", "parts", f"--margin={margin - 1e-6:.9f}", "--json")
    assert (held_back.code, held_back.json["promoted"], held_back.json["gate"]["passed"]) == (1, False, False)
    assert held_back.err.count("\n") == 1
    assert "is not promoted: image_auroc on parts" in held_back.err

    let_through = anomalyclip(
        "promote", "models:/anomalyclip/2", "--reference", "parts", f"--margin={margin + 1e-6:.9f}"
    )
    assert let_through.code == 0
    assert "models:/anomalyclip/2 is the champion now, instead of version 1" in let_through.out
    assert anomalyclip("rollback").out.startswith("models:/anomalyclip/1 is the champion again")

    forced = anomalyclip("promote", "2", "--margin", "-1", "--force", "--json").json  # the reference is kept
    assert (forced["promoted"], forced["forced"], forced["gate"]["reference"]) == (True, True, "parts")
