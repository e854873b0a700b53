"""Sets whose labels stand in masks or in tables of the publisher."""

from pathlib import Path

import pytest

from tasks.errors import InputError
from tasks.layouts import read_layout
from tests.tasks.miniatures import MINIATURES, facts, write


def test_kolektor_parts_are_anomalous_where_their_label_is_marked(tmp_path: Path) -> None:
    write(tmp_path, "KolektorSDD/kos01/Part0.jpg", "KolektorSDD/kos01/Part1.jpg", "KolektorSDD/kos01/Part1_label.bmp",
          "KolektorSDD/kos02/Part0.jpg")  # fmt: skip
    write(tmp_path, "KolektorSDD/kos01/Part0_label.bmp", "KolektorSDD/kos02/Part0_label.bmp", marked=False)
    _, entries = read_layout(str(tmp_path), "sdd", "parts")
    assert facts(tmp_path, entries) == {
        "KolektorSDD/kos01/Part0.jpg": ("electrical commutators", None, 0, None, None),
        "KolektorSDD/kos01/Part1.jpg":
            ("electrical commutators", None, 1, None, "KolektorSDD/kos01/Part1_label.bmp"),
        "KolektorSDD/kos02/Part0.jpg": ("electrical commutators", None, 0, None, None),
    }  # fmt: skip
    (tmp_path / "KolektorSDD/kos02/Part0_label.bmp").unlink()
    with pytest.raises(InputError, match=r"kos02/Part0\.jpg' has no mask"):
        read_layout(str(tmp_path), "sdd", "parts")


def test_dagm_knows_a_missing_mask_by_its_labels_file(tmp_path: Path) -> None:
    names, _ = MINIATURES["dagm"]
    write(tmp_path, *names, "DAGM_KaggleUpload/Class1/Test/0577.PNG")
    listed = tmp_path / "DAGM_KaggleUpload/Class1/Test/Label/Labels.txt"
    listed.parent.mkdir()
    listed.write_text("1\n576\t0\t0576.PNG\t0\t0\n577\t1\t0577.PNG\t577\t0577_label.PNG\n")
    with pytest.raises(InputError, match=r"Class1/Test/0577\.PNG' has no mask"):
        read_layout(str(tmp_path), "dagm", "parts")
    write(tmp_path, "DAGM_KaggleUpload/Class1/Test/Label/0577_label.PNG")
    assert len(read_layout(str(tmp_path), "dagm", "parts")[1]) == 4


HEMORRHAGES = "id, hemorrhage\n0,1\n1,1\n100,0\n"


def test_head_ct_takes_its_labels_from_its_table(tmp_path: Path) -> None:
    write(tmp_path, "head_ct/head_ct/000.png", "head_ct/head_ct/001.png", "head_ct/head_ct/100.png")
    (tmp_path / "labels.csv").write_text(HEMORRHAGES)
    _, entries = read_layout(str(tmp_path), "headct", "parts")
    assert [(e.object.name[-7:], e.class_name, e.label) for e in entries] == [
        ("000.png", "brain", 1), ("001.png", "brain", 1), ("100.png", "brain", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id, hemorrhage\n0,1\n1,1\n", r"does not say 0 or 1 of the image 'head_ct/100\.png'"),
        (HEMORRHAGES + "101,0\n", "the id '101', of which there is no image"),
        ("id\n0\n", "must have the columns id, hemorrhage"),
        ("id,hemorrhage\n0\n", "a row of 1 cells"),
        (HEMORRHAGES + "2,yes\n", "the id '002', of which"),
        (None, r"must hold one labels\.csv"),
    ],
)
def test_head_ct_refuses_a_table_that_does_not_fit(table: str | None, message: str, tmp_path: Path) -> None:
    write(tmp_path, "head_ct/000.png", "head_ct/001.png", "head_ct/100.png")
    if table:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_layout(str(tmp_path), "headct", "parts")


VISA = ["candle/Data/Images/Normal/0000.JPG", "candle/Data/Images/Normal/0001.JPG", "candle/Data/Images/Anomaly/000.JPG",
        "candle/Data/Masks/Anomaly/000.png", "candle/image_anno.csv"]  # fmt: skip
SPLIT = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,normal,candle/Data/Images/Normal/0001.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
pcb1,test,normal,pcb1/Data/Images/Normal/0001.JPG,
"""


def write_visa(root: Path, split: str = SPLIT) -> None:
    write(root, *VISA)
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text(split)
    (root / "split_csv/2cls_highshot.csv").write_text("not read")


@pytest.mark.parametrize("above", ["", "VisA_20220922/"])
def test_visa_takes_split_and_label_from_its_table(above: str, tmp_path: Path) -> None:
    write_visa(tmp_path / above)
    _, entries = read_layout(str(tmp_path), "visa", "parts")
    assert facts(tmp_path, entries) == {
        f"{above}candle/Data/Images/Normal/0000.JPG": ("candle", "train", 0, None, None),
        f"{above}candle/Data/Images/Normal/0001.JPG": ("candle", "test", 0, None, None),
        f"{above}candle/Data/Images/Anomaly/000.JPG":
            ("candle", "test", 1, "Anomaly", f"{above}candle/Data/Masks/Anomaly/000.png"),
    }  # fmt: skip


def test_the_table_of_a_copy_further_down_is_left_out_with_it(tmp_path: Path) -> None:
    write_visa(tmp_path)
    write_visa(tmp_path / "a copy")
    assert len(read_layout(str(tmp_path), "visa", "parts")[1]) == 3
    for folder in (tmp_path / "ct", tmp_path / "ct/a copy"):
        write(folder, "head_ct/000.png")
        (folder / "labels.csv").write_text("id,hemorrhage\n0,1\n")
    assert len(read_layout(str(tmp_path / "ct"), "headct", "parts")[1]) == 1


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("candle/Data/Masks/Anomaly/000.png", r"Anomaly/000\.JPG' has no mask"),
        ("candle/Data/Images/Anomaly/000.JPG", r"Masks/Anomaly/000\.png' belongs to no image"),
        ("candle/Data/Images/Normal/0001.JPG", r"names 'candle/Data/Images/Normal/0001\.JPG', which does not exist"),
        ("split_csv/1cls.csv", r"must hold one split_csv/1cls\.csv"),
    ],
)
def test_visa_names_what_is_missing(lost: str, message: str, tmp_path: Path) -> None:
    write_visa(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=message):
        read_layout(str(tmp_path), "visa", "parts")
