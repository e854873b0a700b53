"""A miniature of each published data set, as its publisher ships it, and what does not fit."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.errors import InputError
from tasks.layout_names import LAYOUT_NAMES
from tasks.layouts import DATASETS, LAYOUTS, Entry, read_layout
from tasks.manifest import ingest_source
from tasks.store import Store

Fact = tuple[str, str | None, int, str | None, str | None]  # class, split, label, kind, name of the mask


def write(root: Path, *names: str, marked: bool = True) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_text = path.suffix.lower() in (".txt", ".csv", ".db", ".json")
        if is_text:
            path.write_text("left alone")
        else:
            Image.new("L", (8, 6), 255 if marked else 0).save(path)


def facts(root: Path, entries: list[Entry]) -> dict[str, Fact]:
    prefix = f"file://{root}/"
    return {
        e.object.name: (e.class_name, e.split, e.label, e.defect_type, e.mask_uri and e.mask_uri.removeprefix(prefix))
        for e in entries
    }


MINIATURES: dict[str, tuple[list[str], dict[str, Fact]]] = {
    "mvtec": (
        ["metal_nut/train/good/000.png", "metal_nut/test/good/000.png", "metal_nut/test/bent/000.png",
         "metal_nut/ground_truth/bent/000_mask.png", "metal_nut/readme.txt", "metal_nut/test/scratch/000.PNG",
         "metal_nut/ground_truth/scratch/000_mask.png"],
        {
            "metal_nut/train/good/000.png": ("metal_nut", "train", 0, None, None),
            "metal_nut/test/good/000.png": ("metal_nut", "test", 0, None, None),
            "metal_nut/test/bent/000.png":
                ("metal_nut", "test", 1, "bent", "metal_nut/ground_truth/bent/000_mask.png"),
            "metal_nut/test/scratch/000.PNG":
                ("metal_nut", "test", 1, "scratch", "metal_nut/ground_truth/scratch/000_mask.png"),
        },
    ),
    "mpdd": (
        ["MPDD/tubes/test/good/000.png", "MPDD/tubes/test/anomalous/001.png",
         "MPDD/tubes/ground_truth/anomalous/001_mask.png"],
        {
            "MPDD/tubes/test/good/000.png": ("tubes", "test", 0, None, None),
            "MPDD/tubes/test/anomalous/001.png":
                ("tubes", "test", 1, "anomalous", "MPDD/tubes/ground_truth/anomalous/001_mask.png"),
        },
    ),
    "btad": (
        ["BTech_Dataset_transformed/01/train/ok/0000.bmp", "BTech_Dataset_transformed/01/test/ok/0000.bmp",
         "BTech_Dataset_transformed/01/test/ko/0000.bmp", "BTech_Dataset_transformed/01/ground_truth/ko/0000.png",
         "BTech_Dataset_transformed/03/test/ko/0001.bmp", "BTech_Dataset_transformed/03/ground_truth/ko/0001.bmp",
         "BTech_Dataset_transformed/03/ground_truth/ok/0002.bmp", "BTech_Dataset_transformed/03/test/ok/0002.bmp"],
        {
            "BTech_Dataset_transformed/01/train/ok/0000.bmp": ("01", "train", 0, None, None),
            "BTech_Dataset_transformed/01/test/ok/0000.bmp": ("01", "test", 0, None, None),
            "BTech_Dataset_transformed/01/test/ko/0000.bmp":
                ("01", "test", 1, "ko", "BTech_Dataset_transformed/01/ground_truth/ko/0000.png"),
            "BTech_Dataset_transformed/03/test/ko/0001.bmp":
                ("03", "test", 1, "ko", "BTech_Dataset_transformed/03/ground_truth/ko/0001.bmp"),
            "BTech_Dataset_transformed/03/test/ok/0002.bmp": ("03", "test", 0, None, None),
        },
    ),
    "sdd": (
        ["electrical commutators/test/good/kos01 Part0.jpg", "electrical commutators/test/bad/kos01 Part5.jpg",
         "electrical commutators/ground_truth/bad/kos01 Part5_label.bmp"],
        {
            "electrical commutators/test/good/kos01 Part0.jpg": ("electrical commutators", "test", 0, None, None),
            "electrical commutators/test/bad/kos01 Part5.jpg":
                ("electrical commutators", "test", 1, "bad",
                 "electrical commutators/ground_truth/bad/kos01 Part5_label.bmp"),
        },
    ),
    "dagm": (
        ["DAGM_KaggleUpload/Class1/Train/0576.PNG", "DAGM_KaggleUpload/Class1/Train/Label/0576_label.PNG",
         "DAGM_KaggleUpload/Class1/Test/0576.PNG", "DAGM_KaggleUpload/Class10/Test/0001.PNG",
         "DAGM_KaggleUpload/Class10/Test/Label/0001_label.PNG", "DAGM_KaggleUpload/Class10/Test/Thumbs.db"],
        {
            "DAGM_KaggleUpload/Class1/Train/0576.PNG":
                ("Class1", "train", 1, None, "DAGM_KaggleUpload/Class1/Train/Label/0576_label.PNG"),
            "DAGM_KaggleUpload/Class1/Test/0576.PNG": ("Class1", "test", 0, None, None),
            "DAGM_KaggleUpload/Class10/Test/0001.PNG":
                ("Class10", "test", 1, None, "DAGM_KaggleUpload/Class10/Test/Label/0001_label.PNG"),
        },
    ),
    "dtd-synthetic": (
        ["Woven_001/train/good/000.png", "Woven_001/test/good/000.png", "Woven_001/test/bad/001.png",
         "Woven_001/ground_truth/bad/001_mask.png"],
        {
            "Woven_001/train/good/000.png": ("Woven_001", "train", 0, None, None),
            "Woven_001/test/good/000.png": ("Woven_001", "test", 0, None, None),
            "Woven_001/test/bad/001.png": ("Woven_001", "test", 1, "bad", "Woven_001/ground_truth/bad/001_mask.png"),
        },
    ),
    "headct": (
        ["brain/test/good/100.png", "brain/test/hemorrhage/000.png"],
        {
            "brain/test/good/100.png": ("brain", "test", 0, None, None),
            "brain/test/hemorrhage/000.png": ("brain", "test", 1, "hemorrhage", None),
        },
    ),
    "brainmri": (
        ["no/1 no.jpeg", "no/No11.JPG", "yes/Y1.jpg", "brain_tumor_dataset/no/1 no.jpeg",
         "brain_tumor_dataset/yes/Y1.jpg"],
        {
            "no/1 no.jpeg": ("brain", None, 0, None, None),
            "no/No11.JPG": ("brain", None, 0, None, None),
            "yes/Y1.jpg": ("brain", None, 1, "yes", None),
        },
    ),
    "br35h": (
        ["no/no0.jpg", "yes/y0.jpg", "pred/pred0.jpg", "Br35H-Mask-RCNN/TRAIN/y1.jpg"],
        {"no/no0.jpg": ("brain", None, 0, None, None), "yes/y0.jpg": ("brain", None, 1, "yes", None)},
    ),
    "covid-19": (
        ["COVID-19 Radiography Database/NORMAL/NORMAL (1).png", "COVID-19 Radiography Database/COVID-19/COVID-19 (1).png",
         "COVID-19 Radiography Database/Viral Pneumonia/Viral Pneumonia (1).png"],
        {
            "COVID-19 Radiography Database/NORMAL/NORMAL (1).png": ("chest", None, 0, None, None),
            "COVID-19 Radiography Database/COVID-19/COVID-19 (1).png": ("chest", None, 1, "COVID-19", None),
        },
    ),
    "isic": (
        ["ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg",
         "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png",
         "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg",
         "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png"],
        {
            "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg":
                ("skin", "test", 1, None, "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png"),
        },
    ),
    "cvc-colondb": (
        ["CVC-ColonDB/images/1.png", "CVC-ColonDB/masks/1.png"],
        {"CVC-ColonDB/images/1.png": ("colon", None, 1, None, "CVC-ColonDB/masks/1.png")},
    ),
    "cvc-clinicdb": (
        ["CVC-ClinicDB/Original/1.tif", "CVC-ClinicDB/Ground Truth/1.tif"],
        {"CVC-ClinicDB/Original/1.tif": ("colon", None, 1, None, "CVC-ClinicDB/Ground Truth/1.tif")},
    ),
    "kvasir": (
        ["Kvasir-SEG/images/cju0 qkwl.jpg", "Kvasir-SEG/masks/cju0 qkwl.jpg", "Kvasir-SEG/kavsir_bboxes.json"],
        {"Kvasir-SEG/images/cju0 qkwl.jpg": ("colon", None, 1, None, "Kvasir-SEG/masks/cju0 qkwl.jpg")},
    ),
    "endo": (
        ["EndoTect/test images/a.JPG", "EndoTect/masks/a_GT.bmp"],
        {"EndoTect/test images/a.JPG": ("colon", None, 1, None, "EndoTect/masks/a_GT.bmp")},
    ),
    "tn3k": (
        ["tn3k/test-image/0000.jpg", "tn3k/test-mask/0000.jpg", "tn3k/trainval-image/0000.jpg",
         "tn3k/trainval-mask/0000.jpg"],
        {"tn3k/test-image/0000.jpg": ("thyroid", "test", 1, None, "tn3k/test-mask/0000.jpg")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", MINIATURES)
def test_a_miniature_is_read_as_its_publisher_means_it(layout: str, tmp_path: Path) -> None:
    names, expected = MINIATURES[layout]
    write(tmp_path, *names)
    _, entries = read_layout(str(tmp_path), layout, "parts")
    assert facts(tmp_path, entries) == expected


def test_there_are_17_data_sets_and_the_command_line_names_every_layout() -> None:
    assert len(DATASETS) == 17
    assert set(MINIATURES) | {"visa"} == set(DATASETS)
    assert sorted(LAYOUTS) == sorted(LAYOUT_NAMES)


MASKED = {
    layout: next((name, fact[4]) for name, fact in expected.items() if fact[4])
    for layout, (_, expected) in MINIATURES.items()
    if any(fact[4] for fact in expected.values())
}


@pytest.mark.parametrize("layout", sorted(MASKED.keys() - {"dagm"}))
def test_a_missing_mask_is_an_error_that_names_the_image(layout: str, tmp_path: Path) -> None:
    image, mask = MASKED[layout]
    write(tmp_path, *MINIATURES[layout][0])
    (tmp_path / str(mask)).unlink()
    with pytest.raises(InputError) as error:
        read_layout(str(tmp_path), layout, "parts")
    assert f"{image!r} has no mask" in str(error.value)


@pytest.mark.parametrize("layout", sorted(MASKED))
def test_an_extra_mask_is_an_error_that_names_it(layout: str, tmp_path: Path) -> None:
    mask = Path(str(MASKED[layout][1]))
    extra = str(mask.with_name(f"99{mask.name}"))
    write(tmp_path, *MINIATURES[layout][0], extra)
    with pytest.raises(InputError) as error:
        read_layout(str(tmp_path), layout, "parts")
    assert f"{extra!r} belongs to no image" in str(error.value)


def test_two_masks_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", "masks/1.BMP")
    with pytest.raises(InputError, match=r"'masks/1\.BMP' and 'masks/1\.png'"):
        read_layout(str(tmp_path), "kvasir", "parts")


def test_masks_are_paired_by_name_where_sorted_positions_would_swap_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        "images/1.png",
        "images/10.png",
        "masks/1_mask.png",
        "masks/10_mask.png",
        "masks/2.png",
        "images/2.png",
    )
    _, entries = read_layout(str(tmp_path), "cvc-colondb", "parts")
    assert {e.object.name: Path(str(e.mask_uri)).name for e in entries} == {
        "images/1.png": "1_mask.png", "images/10.png": "10_mask.png", "images/2.png": "2.png",
    }  # fmt: skip


def test_an_image_whose_own_name_ends_like_a_mask_has_its_mask(tmp_path: Path) -> None:
    write(tmp_path, "images/a_gt.png", "masks/a_gt.png", "images/a.png", "masks/a_GT.png")
    _, entries = read_layout(str(tmp_path), "kvasir", "parts")
    assert {e.object.name: Path(str(e.mask_uri)).name for e in entries} == {
        "images/a.png": "a_GT.png", "images/a_gt.png": "a_gt.png",
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["dagm", "btad"])
def test_one_class_alone_is_named_after_its_folder(layout: str, tmp_path: Path) -> None:
    names, expected = MINIATURES[layout]
    write(tmp_path, *names)
    folder = tmp_path / Path(next(iter(expected))).parts[0] / next(iter(expected.values()))[0]
    _, entries = read_layout(str(folder), layout, "parts")
    assert {entry.class_name for entry in entries} == {folder.name}


# --- sets whose labels stand in masks or tables -----------------------------------------------------------------------


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


# --- counts -----------------------------------------------------------------------------------------------------------


def test_a_count_that_differs_from_the_papers_is_said_at_ingest(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "source", "01/test/ok/1.png", "01/test/ko/2.png", "01/ground_truth/ko/2.png", "04/test/ok/1.png")
    with caplog.at_level(logging.WARNING):
        assert ingest_source.fn(store.uri, "btad", str(tmp_path / "source"), "btad", False).listed == 3
    assert "BTAD in file://" in caplog.text
    assert "classes missing: 02, 03" in caplog.text
    assert "classes that the set does not have: 04" in caplog.text
    assert "2 normal and 1 anomalous test images, 451 and 290 are expected" in caplog.text


def test_counts_that_agree_are_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, number in (("no", DATASETS["brainmri"].normal), ("yes", DATASETS["brainmri"].anomalous)):
        write(tmp_path, *(f"{folder}/{i}.jpg" for i in range(number)))
    with caplog.at_level(logging.WARNING):
        read_layout(str(tmp_path), "brainmri", "parts")
    assert caplog.text == ""


def test_the_documentation_has_a_row_of_each_set_with_its_counts() -> None:
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("|")]
    told = {row[2].strip("`"): (row[3].partition(",")[0], row[4], row[5]) for row in rows if len(row) == 10}
    for layout, dataset in DATASETS.items():
        assert told[layout] == (str(len(dataset.classes)), str(dataset.normal), str(dataset.anomalous))


def test_another_set_in_the_layout_of_mvtec_is_not_held_against_its_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "my part/test/good/1.png")
    with caplog.at_level(logging.WARNING):
        read_layout(str(tmp_path), "mvtec", "parts")
    assert caplog.text == ""


@pytest.mark.parametrize("layout", DATASETS)
def test_a_source_without_the_set_is_refused(layout: str, tmp_path: Path) -> None:
    write(tmp_path, "holiday.png")
    with pytest.raises(InputError, match="holds no image in the layout"):
        read_layout(str(tmp_path), layout, "parts")


# --- meta.json --------------------------------------------------------------------------------------------------------


def row(image: str, anomaly: Any, mask: str = "", kind: str = "good") -> dict[str, Any]:
    return {"img_path": image, "mask_path": mask, "cls_name": "nut", "specie_name": kind, "anomaly": anomaly}


def write_meta(root: Path, *rows: dict[str, Any]) -> Path:
    write(root, "nut/a.png", "nut/b.png", "nut/b_mask.png", "nut/c.png")
    (root / "meta.json").write_text(json.dumps({"train": {"nut": [row("nut/c.png", 0)]}, "Test": {"nut": list(rows)}}))
    return root


@pytest.mark.parametrize("named", ["", "/meta.json"])
def test_meta_json_tells_split_class_kind_and_mask(named: str, tmp_path: Path) -> None:
    write_meta(tmp_path, row("nut/a.png", 0), row(f"{tmp_path}/nut/b.png", 1, f"{tmp_path}/nut/b_mask.png", "bent"))
    _, entries = read_layout(f"{tmp_path}{named}", "meta", "parts")
    assert facts(tmp_path, entries) == {
        "nut/c.png": ("nut", "train", 0, None, None),
        "nut/a.png": ("nut", "test", 0, None, None),
        "nut/b.png": ("nut", "test", 1, "bent", "nut/b_mask.png"),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("nut/gone.png", 0)], r"'nut/gone\.png', which does not exist"),
        ([row("nut/b.png", 1, "nut/gone.png")], r"'nut/gone\.png', which does not exist"),
        ([row("../a.png", 0)], "points outside"),
        ([row("/etc/passwd", 0)], "points outside"),
        ([row("nut/a.png", 2)], "must hold splits"),
        ([row("nut/a.png", 0), row("nut/a.png", 1)], r"names 'nut/a\.png' twice"),
        ([row("nut/a.png", 1, "nut/b_mask.png"), row("nut/b.png", 1, "nut/b_mask.png")], "and to another"),
        (["nut/a.png"], "must hold splits"),
    ],
)
def test_meta_json_that_cannot_be_used_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    write_meta(tmp_path, *rows)
    with pytest.raises(InputError, match=message):
        read_layout(str(tmp_path), "meta", "parts")


def test_a_folder_without_meta_json_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"has no 'meta\.json'"):
        read_layout(str(tmp_path), "meta", "parts")
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_layout(str(tmp_path), "meta", "parts")
