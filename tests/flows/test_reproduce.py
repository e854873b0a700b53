"""The paper's protocol from end to end, on miniatures of its data sets and the embedded backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.embedded.generator import SPLIT, scene
from models.prompts import PromptLearner
from tasks.backbones import open_backbone
from tasks.errors import InputError
from tasks.layouts import DATASETS, find_datasets
from tasks.manifest import read_manifest
from tasks.paper import IMAGE_LEVEL, METHODS, METRICS, PIXEL_LEVEL, RELEASED, released, reported
from tasks.registry import champion_version, use_tracking
from tasks.store import Store
from tests.flows.conftest import Command

SMALL = ("--backbone", "embedded", "--image-size", "96", "--epochs", "1")


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photograph(number: int, normal: Path, damaged: Path | None = None, mask: Path | None = None) -> None:
    """Generated objects of one scene, a flawless and a damaged one, under the names of a data set."""
    families = SPLIT["auxiliary"]
    made = scene(families[number % len(families)], 96, number, n_damaged=1)
    save(made.normal, normal)
    if damaged:
        save(made.damaged[0], damaged)
    if mask:
        save(made.masks[0].astype(np.uint8) * 255, mask)


def write_mvtec(folder: Path) -> None:
    for i in range(4):
        image = folder / f"bottle/test/broken_large/{i:03d}.png"
        mask = folder / f"bottle/ground_truth/broken_large/{i:03d}_mask.png"
        photograph(i, folder / f"bottle/test/good/{i:03d}.png", image, mask)
        photograph(40 + i, folder / f"bottle/train/good/{i:03d}.png")


def write_visa(folder: Path) -> None:
    rows = ["object,split,label,image,mask"]
    for i in range(4):
        normal, anomaly, mask = (
            f"candle/Data/Images/Normal/{i:04d}.JPG", f"candle/Data/Images/Anomaly/{i:03d}.JPG",
            f"candle/Data/Masks/Anomaly/{i:03d}.png",
        )  # fmt: skip
        photograph(10 + i, folder / normal, folder / anomaly, folder / mask)
        rows += [f"candle,test,normal,{normal},", f"candle,test,anomaly,{anomaly},{mask}"]
    (folder / "split_csv").mkdir()
    (folder / "split_csv/1cls.csv").write_text("\n".join(rows))


def write_brains(folder: Path) -> None:
    for i in range(3):
        photograph(20 + i, folder / f"no/{i} no.jpeg", folder / f"yes/Y{i}.JPG")


def write_polyps(folder: Path) -> None:
    for i in range(3):
        photograph(30 + i, folder / f"spare/{i}.png", folder / f"images/{i}.png", folder / f"masks/{i}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """MVTec AD, VisA, an image-level and a pixel-level set."""
    folder = tmp_path / "data"
    write_mvtec(folder / "MVTec AD")
    write_visa(folder / "visa")
    write_brains(folder / "BrainMRI")
    write_polyps(folder / "Kvasir-SEG")
    (folder / "holidays").mkdir()
    return folder


def test_the_table_has_the_papers_numbers_ours_and_the_difference(anomalyclip: Command, root: Path):
    done = anomalyclip("reproduce", "--root", str(root), *SMALL, "--json").json
    assert [(row["data_set"], row["auxiliary"], row["images"]) for row in done["sets"]] == [
        ("mvtec", "visa", 8), ("visa", "mvtec", 8), ("brainmri", "mvtec", 6), ("kvasir", "mvtec", 3),
    ]  # fmt: skip
    rows = {row["data_set"]: row for row in done["sets"]}
    assert done["not_recognised"] == ["holidays"]
    assert rows["mvtec"]["paper"] == {"image_auroc": 91.5, "image_ap": 96.2, "pixel_auroc": 91.1, "aupro": 81.4}
    for name, missing in (("brainmri", ("pixel_auroc", "aupro")), ("kvasir", ("image_auroc", "image_ap"))):
        assert all(rows[name][kind][metric] is None for kind in ("paper", "ours") for metric in missing)
    assert [[c["class_name"] for c in row["classes"]] for row in done["sets"]] == [
        ["bottle", "mean"], ["candle", "mean"], [], [],
    ]  # fmt: skip
    assert rows["visa"]["classes"][0]["paper"] == {
        "image_auroc": 80.9, "image_ap": 82.6, "pixel_auroc": 98.8, "aupro": 96.5,
    }  # fmt: skip
    for row in (*done["sets"], *rows["mvtec"]["classes"], *rows["visa"]["classes"]):
        for metric in METRICS:
            check_difference(row, metric)
    assert rows["mvtec"]["model"] != rows["visa"]["model"] == rows["kvasir"]["model"]

    again = anomalyclip("reproduce", "--root", str(root), *SMALL, "--sets", "mvtec")
    assert again.code == 0
    assert again.out.splitlines()[-1] == "not recognised: holidays"
    table = [line.split() for line in again.out.splitlines()]
    heads = "data set trained on images image AUROC ours ± AP ours ± pixel AUROC ours ± AUPRO (official) ours ±"
    assert " ".join(table[0]) == heads
    assert table[1][:4] == ["mvtec", "visa", "8", "91.5"]
    assert table[1][4] == f"{rows['mvtec']['ours']['image_auroc']:.1f}"
    assert table[1][5] == f"{rows['mvtec']['difference']['image_auroc']:+.1f}"
    by_class = again.out.splitlines().index("mvtec by class, beside the authors' released checkpoint")
    assert table[by_class + 2][:3] == ["bottle", "8", "88.7"]
    parts = Path("store/collections/paper-mvtec/scores").iterdir()
    assert len(list(parts)) == 1  # the same prompts are not scored again
    assert set(read_manifest(Store("store"), "paper-mvtec").rows["split"]) == {"test"}  # four of train lie there, too
    client = use_tracking(Store("store"))
    assert {f"models:/{v.name}/{v.version}" for v in client.search_model_versions()} == {
        row["model"] for row in rows.values()
    }  # nor registered again
    assert champion_version(client) is None


def check_difference(row: dict[str, Any], metric: str) -> None:
    paper, ours, difference = (row[kind][metric] for kind in ("paper", "ours", "difference"))
    if paper is None or ours is None:
        assert difference is None
    else:
        assert 0 <= ours <= 100
        assert difference == pytest.approx(ours - paper)


def test_checkpoints_take_the_place_of_training_and_a_set_without_a_model_is_left_out(
    anomalyclip: Command, tmp_path: Path
):
    write_mvtec(tmp_path / "data/mvtec")
    write_brains(tmp_path / "data/brainmri")
    prompts = PromptLearner(open_backbone("embedded", 96), generator=torch.Generator().manual_seed(1))
    torch.save({"prompt_learner": dict(prompts.state_dict())}, tmp_path / "epoch_15.pth")
    answer = anomalyclip("reproduce", "--root", "data", *SMALL, "--checkpoint", "mvtec=epoch_15.pth")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[1].split()[:4] == ["brainmri", "mvtec", "6", "90.3"]
    assert lines[-1].endswith("the set that its model is trained on: mvtec")
    assert not Path("store/collections/paper-mvtec").exists()
    assert champion_version(use_tracking(Store("store"))) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--root", "nowhere"], "'nowhere' does not exist"),
        (["--root", "empty"], "has no folder of a data set"),
        (["--root", "data", "--sets", "mvtec,nonsense"], "no data set 'nonsense'"),
        (["--root", "data", "--sets", "btad"], "has no folder of BTAD: call it 'btad'"),
        (["--root", "lonely", "--sets", "kvasir"], "put it into 'lonely' as 'mvtec'"),
        (["--root", "lonely"], "to evaluate Kvasir the protocol trains on MVTec AD"),
        (["--root", "data", "--checkpoint", "btad=x.pth"], "trains on mvtec and visa, not on btad"),
        (["--root", "data", "--checkpoint", "x.pth"], "not of the form SET=FILE"),
        (["--root", "twice"], "two folders of MVTec AD"),
        (["--root", "strange"], "has no folder of a data set, but KolektorSDD2: call them"),
    ],
)
def test_what_cannot_be_reproduced_is_said(anomalyclip: Command, root: Path, tmp_path: Path, options, sentence):
    for name in ("empty", "lonely/kvasir", "twice/mvtec", "twice/mvtec_anomaly_detection", "strange/KolektorSDD2"):
        (tmp_path / name).mkdir(parents=True)
    answer = anomalyclip("reproduce", *options)
    assert answer.code == 2
    assert sentence in answer.err


def test_folders_are_found_by_layout_title_or_the_publishers_name(tmp_path: Path):
    names = ["MVTec AD", "dtd_synthetic", "COVID-19", "CVC-ClinicDB", "KolektorSDD", "BTech_Dataset_transformed"]
    for name in (*names, "notes", "KolektorSDD2"):
        (tmp_path / name).mkdir()
    (tmp_path / "visa").write_text("a file")
    found, unknown = find_datasets(str(tmp_path))
    layouts = ("mvtec", "dtd-synthetic", "covid-19", "cvc-clinicdb", "sdd", "btad")
    assert found == {layout: f"file://{tmp_path}/{name}" for layout, name in zip(layouts, names, strict=True)}
    assert unknown == ["KolektorSDD2", "notes"]
    with pytest.raises(InputError, match="does not exist"):
        find_datasets(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("layout", ["mvtec", "visa"])
def test_the_released_numbers_are_of_every_class_and_their_mean_is_the_mean(layout: str):
    assert set(RELEASED[layout]) == {*DATASETS[layout].classes, "mean"}
    for metric, mean in released(layout, "mean").items():
        by_class = [released(layout, name)[metric] for name in DATASETS[layout].classes]
        assert np.mean(by_class) == pytest.approx(mean, abs=0.1)  # of numbers that are rounded to 0.1
    assert released(layout, "holiday") == dict.fromkeys(METRICS)


def test_the_papers_tables_are_whole():
    assert IMAGE_LEVEL.keys() | PIXEL_LEVEL.keys() == DATASETS.keys()
    assert (len(IMAGE_LEVEL), len(PIXEL_LEVEL)) == (11, 13)
    for table in (IMAGE_LEVEL, PIXEL_LEVEL):
        assert all(len(row) == len(METHODS) for row in table.values())
    assert reported("visa", "WinCLIP") == {"image_auroc": 78.1, "image_ap": 81.2, "pixel_auroc": 79.6, "aupro": 56.8}
    assert reported("dtd-synthetic", "CoOp") == dict.fromkeys(METRICS)
    assert reported("tn3k") == {"image_auroc": None, "image_ap": None, "pixel_auroc": 81.5, "aupro": 50.4}
