"""The layout `labels`: a table beside the images says what is known of them, or is refused in a sentence."""

import json
import unicodedata
from pathlib import Path

import pytest

from tasks.errors import InputError
from tasks.layouts import read_layout
from tests.tasks.test_layouts import facts, write

CSV = "\ufeffimage,label,mask,class_name\na.png,0,,nut\nb.png,1,b_mask.png,nut\nc.png,scratched,,nut\nd.png,,,nut\n"
ROWS = [
    {"image": "a.png", "label": 0, "class_name": "nut"},
    {"image": "b.png", "label": 1, "mask": "b_mask.png", "class_name": "nut"},
    {"image": "c.png", "label": "scratched", "class_name": "nut"},
    {"image": "d.png", "label": None, "class_name": "nut"},
]


@pytest.mark.parametrize(("file", "content"), [("labels.csv", CSV), ("labels.json", json.dumps(ROWS))])
@pytest.mark.parametrize("named", [True, False], ids=["the file", "its folder"])
def test_labels_come_from_a_table_beside_the_images(tmp_path: Path, file: str, content: str, named: bool) -> None:
    write(tmp_path, "a.png", "b.png", "c.png", "d.png", "b_mask.png")
    (tmp_path / file).write_text(content, encoding="utf-8")
    _, entries = read_layout(str(tmp_path / file if named else tmp_path), "labels", "parts")
    assert facts(entries) == {
        "a.png": ("nut", None, 0, None),
        "b.png": ("nut", None, 1, None),
        "c.png": ("nut", None, 1, "scratched"),
        "d.png": ("nut", None, None, None),
    }
    assert [bool(entry.mask_uri) for entry in entries] == [False, True, False, False]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "s3://bucket/x.png", "..\\secret.png"])
def test_labels_cannot_point_outside_their_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, "secret.png", "inside/a.png")
    (tmp_path / "inside/labels.json").write_text(json.dumps([{"image": name, "label": 0}]))
    with pytest.raises(InputError, match="points outside"):
        read_layout(str(tmp_path / "inside"), "labels", "parts")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "gone.png", "label": 0}]', r"'gone\.png', which does not exist"),
        ('[{"label": 1}]', "names no image in record 1, of the fields 'label'"),
        ("[1, 2", "cannot be read as JSON"),
        ('[{"image": "a.png", "label": 7}]', "has the label '7'"),
        ('[{"image": "a.png", "label": 0}, {"image": "./a.png", "label": 1}]', r"names 'a\.png' twice"),
        ('[{"image": "a.png", "label": 1, "mask": "a_mask.png"}]', r"'a_mask\.png', which does not exist"),
        ('["a.png"]', "must list records"),
        ('[{"image": "a.png", "mask": "a.png"}]', "has no field label; its fields: image, mask"),
        ('{"a.png": {"label": 0}}', "has the label {'label': 0}: a label is a word, 0 or 1"),
        ('[{"image": "a.png", "label": [0]}]', "a label is a word, 0 or 1"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_layout(str(tmp_path), "labels", "parts")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\na.png,hole,in the middle\n", r"more cells than columns in the row of 'a\.png'"),
        ("image,label,label\na.png,0,1\n", "has the column 'label' twice"),
        ("image,label\na.png,0\n,1\n", "names no image in record 2, of the fields 'image', 'label'"),
        ("image;label\na.png;0\n", "names no image in record 1, of the fields 'image;label'; wanted: image, label"),
        ("image,label\na.png,0\x00\n", "use 0 for normal, 1 for anomalous"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_layout(str(tmp_path), "labels", "parts")


def test_empty_rows_and_nan_say_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text("image,label,mask,class,split\na.png,1,NaN,nan,NaN\n,,,,\n")
    (tmp_path / "more.json").write_text('[{"image": "b.png", "label": 1.0, "split": NaN, "defect_type": NaN}]')
    for file, name in (("labels.csv", "a.png"), ("more.json", "b.png")):
        _, entries = read_layout(str(tmp_path / file), "labels", "parts")
        assert facts(entries) == {name: ("parts", None, 1, None)}


def test_labels_have_class_split_and_kind_where_the_table_has_them(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", "unlisted.png")
    (tmp_path / "MINE.CSV").write_text(
        "image, label, class ,split,defect_type\na.png, 1,nut,Test,hole\nb.png,ok,,train,\n"
    )
    _, entries = read_layout(str(tmp_path / "MINE.CSV"), "labels", "parts")
    assert facts(entries) == {"a.png": ("nut", "test", 1, "hole"), "b.png": ("parts", "train", 0, None)}


def test_numbers_in_the_place_of_names_are_names(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    rows = [{"image": "a.png", "label": 1, "split": 0, "defect_type": 7}, {"image": "b.png", "label": 0, "class": 3}]
    (tmp_path / "labels.json").write_text(json.dumps(rows))
    _, entries = read_layout(str(tmp_path), "labels", "parts")
    assert facts(entries) == {"a.png": ("parts", "0", 1, "7"), "b.png": ("3", None, 0, None)}


def test_labels_may_be_one_object_of_image_and_label(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.json").write_text('{"a.png": "good", "b.png": "bent"}')
    _, entries = read_layout(str(tmp_path), "labels", "parts")
    assert facts(entries) == {"a.png": ("parts", None, 0, None), "b.png": ("parts", None, 1, "bent")}


@pytest.mark.parametrize(
    ("word", "label", "kind"),
    [("unknown", None, None), ("N/A", None, None), ("no", 0, None), ("Healthy", 0, None), ("pass", 0, None),
     ("yes", 1, None), ("FAIL", 1, None), ("cold solder", 1, "cold solder")],
)  # fmt: skip
def test_words_in_the_place_of_labels(tmp_path: Path, word: str, label: int | None, kind: str | None) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "labels.json").write_text(json.dumps({"a.png": word}))
    _, entries = read_layout(str(tmp_path), "labels", "parts")
    assert facts(entries) == {"a.png": ("parts", None, label, kind)}


def test_a_table_names_a_file_whose_accents_are_written_in_another_way(tmp_path: Path) -> None:
    write(tmp_path, unicodedata.normalize("NFD", "größe.png"))
    (tmp_path / "labels.json").write_text(json.dumps({unicodedata.normalize("NFC", "größe.png"): 1}))
    _, (entry,) = read_layout(str(tmp_path), "labels", "parts")
    assert (entry.object.name, entry.label) == (unicodedata.normalize("NFD", "größe.png"), 1)


def test_labels_in_another_encoding_or_in_two_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_bytes("image,label\ngröße.png,0\n".encode("cp1252"))
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_layout(str(tmp_path), "labels", "parts")
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(InputError, match="it has 2"):
        read_layout(str(tmp_path), "labels", "parts")
    with pytest.raises(InputError, match=r"mine\.csv' does not exist"):
        read_layout(str(tmp_path / "mine.csv"), "labels", "parts")
