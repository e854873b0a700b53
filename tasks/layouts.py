"""How a folder or a bucket tells what its images are: class, split, label and ground truth.

    flat      any images, no labels
    folders   …/<class>/<state>/image: the last folder is the state, `good`, `normal` and `ok` are normal, others defects
    mvtec     <class>/{train,test}/<state>/image and <class>/ground_truth/<state>/<image>_mask.png, or one class alone
    labels    a CSV or JSON file of image, label, mask (and class, split, defect_type), paths relative to it

A layout reads the listing of a source and gives entries; it opens no image. Masks are paired by name.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tasks.errors import InputError
from tasks.images import SUFFIXES, UnreadableImage
from tasks.store import open_filesystem

NORMAL_NAMES = frozenset({"good", "normal", "ok"})


@dataclass(frozen=True)
class StoredObject:
    """One object as the store lists it; name is its path relative to the source."""

    name: str
    uri: str
    etag: str
    size: int
    last_modified: datetime | None


@dataclass(frozen=True)
class Entry:
    """One image and what the layout tells of it; label is 0 normal, 1 anomalous, None unknown."""

    object: StoredObject
    class_name: str
    split: str | None = None
    defect_type: str | None = None
    label: int | None = None
    mask_uri: str | None = None


@dataclass(frozen=True)
class Source:
    """A listed folder or bucket prefix: objects by name, and what the source itself is called."""

    uri: str
    name: str
    objects: Mapping[str, StoredObject]

    def images(self) -> Iterator[StoredObject]:
        return (found for name, found in self.objects.items() if has_suffix(name, SUFFIXES))


def has_suffix(name: str, suffixes: Sequence[str] | frozenset[str]) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes


def list_source(uri: str) -> Source:
    """All objects below a folder or prefix, hidden ones left out; raises InputError where there is nothing."""
    filesystem, root = open_filesystem(uri)
    root = root.rstrip("/")
    filesystem.invalidate_cache()
    try:
        listing: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        listing = {}
    except PermissionError as error:
        raise InputError(f"the source {uri!r} may not be listed: {error}") from error
    if not listing and not filesystem.exists(root):
        raise InputError(f"the source {uri!r} does not exist")
    objects = {}
    for path in sorted(listing):
        name, info = in_utf8(path[len(root) + 1 :]), followed(filesystem, listing[path])
        hidden = any(part.startswith(".") for part in name.split("/"))
        if name and not hidden and info["type"] in ("file", "link"):
            objects[name] = stored_object(filesystem, name, info)
    return Source(str(filesystem.unstrip_protocol(root)), PurePosixPath(root).name, objects)


def followed(filesystem: Any, info: Mapping[str, Any]) -> Mapping[str, Any]:
    """The listing of a local link has a time of its own; what counts is the file behind it, where there is one."""
    if not (isinstance(filesystem, LocalFileSystem) and info["islink"]):
        return info
    try:
        return dict(filesystem.info(info["name"]))
    except OSError:
        return {**info, "type": "link"}  # broken: scoring finds it missing


def in_utf8(name: str) -> str:
    """A local name that is no UTF-8 cannot be written into a table: it is listed with escapes, and found missing later."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def stored_object(filesystem: Any, name: str, info: Mapping[str, Any]) -> StoredObject:
    modified = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or info.get("created")
    if isinstance(modified, int | float):
        modified = datetime.fromtimestamp(modified, UTC)
    return StoredObject(
        name,
        in_utf8(str(filesystem.unstrip_protocol(info["name"]))),
        etag_of(filesystem, info),
        int(info["size"] or 0),
        modified,
    )


def etag_of(filesystem: Any, info: Mapping[str, Any]) -> str:
    """The store's ETag; where a store has none, what changes when the object does: its time and size."""
    for key in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key]).strip('"')
    time = info["mtime"] if isinstance(filesystem, LocalFileSystem) else info.get("created") or info.get("mtime") or ""
    time = time.timestamp() if isinstance(time, datetime) else time
    return f"{round(time * 1e6):x}-{info['size']:x}" if isinstance(time, float) else f"{time}-{info['size']:x}"


def read_version(row: Mapping[str, Any]) -> bytes:
    """The bytes of the listed version; raises UnreadableImage where the object is gone or is another one by now."""
    filesystem, path = open_filesystem(row["uri"])
    try:
        data = bytes(filesystem.cat_file(path))
        if not is_version(filesystem, path, data, row["etag"]):
            raise UnreadableImage("changed", "the object is not the version that was listed")
    except FileNotFoundError:
        raise UnreadableImage("missing", "the object vanished after it was listed") from None
    except IsADirectoryError:
        raise UnreadableImage("changed", "the object is a folder by now") from None
    except PermissionError as error:
        if not isinstance(filesystem, LocalFileSystem):
            raise  # that is the credentials, not this object
        raise UnreadableImage("unreadable", str(error)) from error
    return data


def is_version(filesystem: Any, path: str, data: bytes, etag: str) -> bool:
    """Most ETags are the MD5 of the bytes; where this one is not, the store is asked again."""
    if hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
        return True
    return etag_of(filesystem, filesystem.info(path, refresh=True)) == etag


# --- layouts ----------------------------------------------------------------------------------------------------------


def read_layout(uri: str, layout: str, collection: str) -> tuple[str, list[Entry]]:
    """URI of the listed source, and its images; raises InputError where the source or the layout does not fit."""
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    source_uri, entries = LAYOUTS[layout](uri, collection)
    if not entries:
        raise InputError(f"the source {uri!r} holds no image in the layout {layout!r}")
    return source_uri, entries


def flat(uri: str, collection: str) -> tuple[str, list[Entry]]:
    source = list_source(uri)
    return source.uri, [Entry(image, class_name=collection) for image in source.images()]


def folders(uri: str, collection: str) -> tuple[str, list[Entry]]:
    source = list_source(uri)
    entries = []
    for image in source.images():
        *above, state = image.name.split("/")[:-1] or [source.name]
        normal = state.lower() in NORMAL_NAMES
        class_name = "/".join(above) or collection
        entries.append(Entry(image, class_name, None, None if normal else state, 0 if normal else 1))
    return source.uri, entries


def mvtec(uri: str, _collection: str) -> tuple[str, list[Entry]]:
    source = list_source(uri)
    entries, masks = [], {}
    for found in source.images():
        *above, part, state, file = ("", "", *found.name.split("/"))
        class_name = "/".join(filter(None, above)) or source.name
        if part == "ground_truth":
            masks[class_name, state, PurePosixPath(file).stem] = found
        elif part in ("train", "test"):
            normal = state.lower() in NORMAL_NAMES
            entries.append(Entry(found, class_name, part, None if normal else state, 0 if normal else 1))
    return source.uri, pair_masks(entries, masks)


def pair_masks(entries: list[Entry], masks: dict[tuple[str, str, str], StoredObject]) -> list[Entry]:
    """Give each anomalous entry of a class with ground truth the mask of its name; a missing or extra one is an error."""
    with_masks = {class_name for class_name, _, _ in masks}
    paired = []
    for entry in entries:
        if entry.label and entry.class_name in with_masks:
            stem = PurePosixPath(entry.object.name).stem
            keys = [(entry.class_name, str(entry.defect_type), name) for name in (f"{stem}_mask", stem)]
            key = next((key for key in keys if key in masks), None)
            if key is None:
                raise InputError(f"the anomalous image {entry.object.name!r} has no mask in its ground_truth folder")
            entry = replace(entry, mask_uri=masks.pop(key).uri)
        paired.append(entry)
    if masks:
        raise InputError(f"the mask {next(iter(masks.values())).name!r} belongs to no image of its name")
    return paired


# --- the layout `labels` ----------------------------------------------------------------------------------------------


def labels(uri: str, collection: str) -> tuple[str, list[Entry]]:
    folder, name = split_labels_uri(uri)
    source = list_source(folder)
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
    return folder or ".", name


def parse_labels(content: bytes, name: str) -> list[dict[str, Any]]:
    try:
        if has_suffix(name, (".csv",)):
            records: Any = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
        else:
            records = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InputError(f"{name!r} cannot be read as {name.rpartition('.')[2].upper()}: {error}") from error
    if isinstance(records, dict):
        records = [{"image": image, "label": label} for image, label in records.items()]
    if not isinstance(records, list) or not all(isinstance(r, dict) and r.get("image") for r in records):
        raise InputError(f"{name!r} must list records with the fields image, label and, where known, mask")
    return records


def labelled_entry(record: Mapping[str, Any], source: Source, collection: str, file: str) -> Entry:
    label, state = parse_label(record.get("label"), file)
    mask = record.get("mask")
    return Entry(
        object=referenced(str(record["image"]), source, file),
        class_name=str(record.get("class_name") or record.get("class") or collection),
        split=record.get("split") or None,
        defect_type=record.get("defect_type") or state,
        label=label,
        mask_uri=referenced(str(mask), source, file).uri if mask and label else None,
    )


def parse_label(value: Any, file: str) -> tuple[int | None, str | None]:
    """Label and, where the label is a word, the kind of defect it names."""
    word = "" if value is None else str(value).strip()
    if word == "":
        return None, None
    if word.lower() in {"0", "0.0", "false"} | NORMAL_NAMES:
        return 0, None
    if word.lower() in {"1", "1.0", "true", "anomaly", "anomalous", "abnormal", "defect", "defective", "bad"}:
        return 1, None
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
    found = source.objects.get(str(relative))
    if found is None:
        raise InputError(f"{file!r} names {name!r}, which does not exist in {source.uri!r}")
    return found


LAYOUTS: dict[str, Callable[[str, str], tuple[str, list[Entry]]]] = {
    "flat": flat,
    "folders": folders,
    "mvtec": mvtec,
    "labels": labels,
}
