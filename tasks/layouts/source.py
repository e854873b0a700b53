"""Objects of a folder or a bucket as its store lists them, and the bytes of the version that was listed."""

import errno
import hashlib
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from pathlib import PurePosixPath
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from tasks.errors import InputError
from tasks.images import SUFFIXES, UnreadableImage
from tasks.layouts.listing import list_objects
from tasks.store import open_filesystem

RANGE = 65_536  # bytes: the least that is read of an object, and nearly always what its header is in
NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)  # links in a circle or through a file, names with escapes
NO_SIZE = "-0"  # ends the etag of a local file without content, and of a link that led nowhere when it was listed
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
    """A folder or bucket prefix, and what it is called.

    Iterating over it lists it anew, object by object; `objects` holds the whole listing, which takes about a kilobyte an
    object: it is for the layouts that pair images with masks or with the rows of a table.
    """

    filesystem: Any
    root: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.root).name

    @cached_property
    def uri(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.root))

    def __iter__(self) -> Iterator[StoredObject]:
        """Raises InputError where the source does not exist or may not be listed."""
        above, empty = f"{self.uri.rstrip('/')}/", True
        try:
            for name, info in list_objects(self.filesystem, self.root):
                empty = False
                yield stored_object(self.filesystem, in_utf8(name), above, info)
        except PermissionError as error:
            raise InputError(f"the source {self.uri!r} may not be listed: {error}") from error
        except FileNotFoundError:
            if not empty:  # what is not listed would count as deleted
                raise
        if empty and not self.filesystem.exists(self.root):
            raise InputError(f"the source {self.uri!r} does not exist")

    @cached_property
    def objects(self) -> Mapping[str, StoredObject]:
        """All objects by name, in the order of names."""
        return {found.name: found for found in sorted(self, key=attrgetter("name"))}

    @cached_property
    def composed(self) -> Mapping[str, StoredObject]:
        """All objects by their names in NFC: some archives hold a name in another form than the table that names it."""
        return {unicodedata.normalize("NFC", name): found for name, found in self.objects.items()}

    def images(self) -> Iterator[StoredObject]:
        return (found for found in self.objects.values() if is_image(found))


def is_image(found: StoredObject) -> bool:
    return has_suffix(found.name, SUFFIXES)


def has_suffix(name: str, suffixes: Sequence[str] | frozenset[str]) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes


def open_source(uri: str) -> Source:
    if not uri.strip():
        raise InputError("the source is empty: name a folder, '.' for this one")
    filesystem, root = open_filesystem(uri)
    filesystem.invalidate_cache()
    if isinstance(filesystem, LocalFileSystem) and os.path.isfile(root):
        raise InputError(f"the source {uri!r} is a file: name its folder")
    source = Source(filesystem, root.rstrip("/"))
    check_addresses(source, uri)
    return source


def check_addresses(source: Source, uri: str) -> None:
    """InputError where the addresses of the source's images would not lead back to it, as with FTP, whose host they lack."""
    with suppress(InputError):
        if open_filesystem(source.uri)[0] is source.filesystem:
            return
    raise InputError(f"{uri!r} cannot be a source: its images would be called {source.uri}/…, where nothing is found")


def in_utf8(name: str) -> str:
    """A local name that is no UTF-8 cannot be written into a table: it is listed with escapes, and found missing later."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def stored_object(filesystem: Any, name: str, above: str, info: Mapping[str, Any]) -> StoredObject:
    modified = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or info.get("created")
    if isinstance(modified, int | float):
        try:
            modified = datetime.fromtimestamp(modified, UTC)
        except (ValueError, OverflowError, OSError):  # beyond the year 9999
            modified = None
    size = int(info.get("Size") or info.get("size") or 0)
    return StoredObject(name, above + name, etag_of(filesystem, info), size, modified)


def etag_of(filesystem: Any, info: Mapping[str, Any]) -> str:
    """The store's ETag; where a store has none, what changes when the object does: its time and size.

    Raises InputError where it tells neither.
    """
    for key in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key]).strip('"')
    if info.get("size") is None:
        raise InputError(f"{info.get('name')!r} has neither an ETag nor a size: its store cannot be a source")
    time = info["mtime"] if isinstance(filesystem, LocalFileSystem) else info.get("created") or info.get("mtime") or ""
    time = time.timestamp() if isinstance(time, datetime) else time
    return f"{round(time * 1e6):x}-{info['size']:x}" if isinstance(time, float) else f"{time}-{info['size']:x}"


def read_version(row: Mapping[str, Any]) -> bytes:
    """The bytes of the listed version; raises UnreadableImage where the object is gone or is another one by now."""
    filesystem, path = open_filesystem(row["uri"])
    with reasons(filesystem):
        data = bytes(filesystem.cat_file(path))
        if not is_version(filesystem, path, data, row["etag"]):
            raise UnreadableImage("changed", "the object is not the version that was listed")
    return data


@contextmanager
def open_version(row: Mapping[str, Any]) -> Iterator[IO[bytes]]:
    """The listed version as a file of which ranges are read as they are asked for; raises UnreadableImage likewise."""
    filesystem, path = open_filesystem(row["uri"])
    with reasons(filesystem):
        if etag_of(filesystem, filesystem.info(path, refresh=True)) != row["etag"]:
            raise UnreadableImage("changed", "the object is not the version that was listed")
        ranges = Ranges(filesystem, path, int(row["size"]))
        try:
            yield io.BufferedReader(ranges, RANGE)
        except UnreadableImage as error:
            raise ranges.failure or error from None


@contextmanager
def reasons(filesystem: Any) -> Iterator[None]:
    """Errors of the store that are about one object, as the reason why its image cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise UnreadableImage("missing", "the object vanished after it was listed") from None
    except IsADirectoryError:
        raise UnreadableImage("changed", "the object is a folder by now") from None
    except PermissionError as error:
        raise UnreadableImage("unreadable" if is_archived(error) else "forbidden", str(error)) from error
    except OSError as error:
        if not isinstance(filesystem, LocalFileSystem) or error.errno not in NO_FILE:
            raise
        raise UnreadableImage("missing", f"the name leads to no file: {error.strerror}") from None


def is_archived(error: PermissionError) -> bool:
    """Whether S3 refuses an object because it lies in an archive, as it does until somebody restores it."""
    response = getattr(error.__cause__, "response", None) or {}
    return bool(response.get("Error", {}).get("Code") == "InvalidObjectState")


class Ranges(io.RawIOBase):
    """An object of a store, read by ranges. failure: what the store raised, which Pillow may take for a bad image."""

    def __init__(self, filesystem: Any, path: str, size: int) -> None:
        self.filesystem, self.path, self.size, self.position = filesystem, path, size, 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self.fetch(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self.fetch(self.size)

    def fetch(self, length: int) -> bytes:
        end = min(self.position + length, self.size)
        if end <= self.position:
            return b""
        try:
            data = bytes(self.filesystem.cat_file(self.path, start=self.position, end=end))
        except Exception as error:
            self.failure = error
            raise
        self.position += len(data)
        return data


def is_version(filesystem: Any, path: str, data: bytes, etag: str) -> bool:
    """Most ETags are the MD5 of the bytes; where this one is not, the store is asked again."""
    if hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
        return True
    return etag_of(filesystem, filesystem.info(path, refresh=True)) == etag
