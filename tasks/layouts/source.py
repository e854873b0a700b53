"""Objects of a folder or a bucket as its store lists them, and the bytes of the version that was listed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
