"""Layouts that a file tells: a table of labels, and the meta.json of the published code."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from tasks.errors import InputError
from tasks.layouts.source import NORMAL_NAMES, Entry, Source, StoredObject, has_suffix, open_source
from tasks.store import open_filesystem, read_uri

UNKNOWN = {"", "unknown", "unlabeled", "unlabelled", "null", "n/a", "nan", "?"}
NORMAL = {"0", "0.0", "false", "no", "negative", "pass", "passed", "healthy"} | NORMAL_NAMES
ANOMALOUS = {"1", "1.0", "true", "yes", "positive", "fail", "failed", "bad", "defect", "defective"}
ANOMALOUS |= {"anomaly", "anomalous", "abnormal"}

# --- the layout `labels` ----------------------------------------------------------------------------------------------


def labels(uri: str, collection: str) -> tuple[str, list[Entry]]:
    folder, name = split_labels_uri(uri)
    source = open_source(folder)
    if name and name not in source.objects:
        raise InputError(f"the labels file {uri!r} does not exist")
    candidates = [name] if name else [n for n in ("labels.csv", "labels.json") if n in source.objects]
    if len(candidates) != 1:
        raise InputError(
            f"{uri!r} must hold one labels.csv or labels.json (or name the file); it has {len(candidates)}"
        )
    filesystem, path = open_filesystem(source.objects[candidates[0]].uri)
    records = parse_labels(filesystem.cat_file(path), candidates[0])
    entries: dict[str, Entry] = {}
    for record in records:
        entry = labelled_entry(record, source, collection, candidates[0])
        if entry.object.name in entries:
            raise InputError(f"{candidates[0]!r} names {entry.object.name!r} twice")
        entries[entry.object.name] = entry
    return source.uri, list(entries.values())


def split_labels_uri(uri: str) -> tuple[str, str]:
    """Folder and file name of a labels URI; the name is empty where the URI is a folder."""
    if not has_suffix(uri, (".csv", ".json")):
        return uri, ""
    folder, _, name = uri.rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), name


def parse_labels(content: bytes, name: str) -> list[dict[str, Any]]:
    try:
        if has_suffix(name, (".csv",)):
            reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), skipinitialspace=True)
            reader.fieldnames = fields = [name.strip() for name in reader.fieldnames or ()]
            if twice := next((field for field in fields if field and fields.count(field) > 1), None):
                raise InputError(f"{name!r} has the column {twice!r} twice")
            records: Any = [record for record in reader if any(record.values())]  # spreadsheets leave empty rows
        else:
            records = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{name!r} cannot be read as {name.rpartition('.')[2].upper()}: {error}") from error
    if isinstance(records, dict):
        records = [{"image": image, "label": label} for image, label in records.items()]
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise InputError(f"{name!r} must list records with the fields image, label and, where known, mask")
    if nameless := next((number for number, record in enumerate(records, start=1) if not record.get("image")), None):
        given = ", ".join(map(repr, records[nameless - 1]))
        raise InputError(f"{name!r} names no image in record {nameless}, of the fields {given}; wanted: image, label")
    if records and not any("label" in record for record in records):
        raise InputError(f"{name!r} has no field label; its fields: {', '.join(map(str, records[0]))}")
    if surplus := next((record for record in records if None in record), None):
        raise InputError(f"{name!r} has more cells than columns in the row of {surplus['image']!r}")
    return records


def labelled_entry(record: Mapping[str, Any], source: Source, collection: str, file: str) -> Entry:
    label, state = parse_label(record.get("label"), file)
    mask = word_in(record, "mask")
    return Entry(
        object=referenced(str(record["image"]), source, file),
        class_name=word_in(record, "class_name") or word_in(record, "class") or collection,
        split=(word_in(record, "split") or "").lower() or None,
        defect_type=word_in(record, "defect_type") or state,
        label=label,
        mask_uri=referenced(mask, source, file).uri if mask and label else None,
    )


def word_in(record: Mapping[str, Any], field: str) -> str | None:
    """JSON may have a number where we have a name, and tables have NaN where they have none."""
    value = record.get(field)
    return None if value is None or str(value).strip().lower() in ("", "nan") else str(value)


def parse_label(value: Any, file: str) -> tuple[int | None, str | None]:
    """Label and, where the label is a word, the kind of defect it names."""
    if not isinstance(value, str | int | float | None):
        raise InputError(f"{file!r} has the label {value!r}: a label is a word, 0 or 1")
    word = "" if value is None else str(value).strip()
    if word.lower() in UNKNOWN:
        return None, None
    if word.lower() in NORMAL:
        return 0, None
    if word.lower() in ANOMALOUS:
        return 1, None
    if word.lower() != "none" and word.isprintable():  # none: of no defect, or not known?
        try:
            float(word)
        except ValueError:
            return 1, word
    raise InputError(f"{file!r} has the label {word!r}: use 0 for normal, 1 for anomalous, or the name of the state")


def referenced(name: str, source: Source, file: str) -> StoredObject:
    """The object that a labels file names; it has to lie below the source."""
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or "://" in name:
        raise InputError(f"{file!r} names {name!r}, which points outside {source.uri!r}")
    found = source.objects.get(str(relative)) or source.composed.get(unicodedata.normalize("NFC", str(relative)))
    if found is None:
        raise InputError(f"{file!r} names {name!r}, which does not exist in {source.uri!r}")
    return found


# --- the layout `meta` ------------------------------------------------------------------------------------------------


def meta(uri: str, collection: str) -> tuple[str, list[Entry]]:
    """{"train": {class: [row, …]}, "test": …}; a row has img_path, mask_path, cls_name, specie_name and anomaly (0 or 1).

    Paths are relative to the file's folder or absolute and below it. An empty mask_path is no ground truth.
    """
    folder, name = split_labels_uri(uri)
    source, name = open_source(folder), name or "meta.json"
    if name not in source.objects:
        raise InputError(f"the source {folder!r} has no {name!r}")
    entries: dict[str, Entry] = {}
    masks: dict[str, str] = {}
    for split, record in meta_records(read_json(source.objects[name]), name):
        entry = meta_entry(split, record, source, collection, name)
        if entry.object.name in entries:
            raise InputError(f"{name!r} names {entry.object.name!r} twice")
        if entry.mask_uri and masks.setdefault(entry.mask_uri, entry.object.name) != entry.object.name:
            raise InputError(f"{name!r} gives the mask {record['mask_path']!r} to {entry.object.name!r} and to another")
        entries[entry.object.name] = entry
    return source.uri, list(entries.values())


def read_json(found: StoredObject) -> Any:
    try:
        return json.loads(read_uri(found.uri))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{found.name!r} cannot be read as JSON: {error}") from error


def meta_records(content: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Split, in lower case, and row; raises InputError for any other form."""
    try:
        for split, classes in content.items():
            for records in classes.values():
                for record in records:
                    if not (record["img_path"] and record["anomaly"] in (0, 1)):
                        raise ValueError(f"the row {record}")
                    yield split.lower(), record
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{name!r} must hold splits of classes of rows with img_path, mask_path, cls_name, specie_name and anomaly "
            f"(0 or 1): {type(error).__name__} {error}"
        ) from error


def meta_entry(split: str, record: Mapping[str, Any], source: Source, collection: str, name: str) -> Entry:
    label, mask = int(record["anomaly"]), record.get("mask_path")
    return Entry(
        object=referenced(below(source, str(record["img_path"])), source, name),
        class_name=str(record.get("cls_name") or collection),
        split=split,
        defect_type=word_in(record, "specie_name") if label else None,
        label=label,
        mask_uri=referenced(below(source, str(mask)), source, name).uri if mask and label else None,
    )


def below(source: Source, path: str) -> str:
    """A path relative to the source, where it is an absolute one below it; any other as it is."""
    root = open_filesystem(source.uri)[1].rstrip("/") + "/"
    return path.removeprefix(root)
