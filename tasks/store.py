"""The store: where everything lies, and reading and writing of whole objects over fsspec."""

import errno
import mimetypes
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import InputError

CACHE = Path.home() / ".cache" / "anomalyclip"  # what this machine keeps beside a store that is remote
WITHOUT_USER = r"^(?![^/]*://[^/]*@)"  # of a URI, also behind the name of a model: an object's key may have an @
S3 = ("s3", "s3a")
TAKEN = (errno.EINVAL, errno.EIO)  # how s3fs puts a 412 of a Ceph gateway, and a 409 of S3 where two create at once
NO_CREATE = (errno.ENOSYS, errno.ENOTSUP, errno.EPERM)  # S3 without If-None-Match, a disk without hard links
S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "retries": {"mode": "adaptive", "max_attempts": 8},
        "connect_timeout": 10,
        "read_timeout": 30,
        "max_pool_connections": 64,  # botocore's 10 are fewer than our readers and writers
        "user_agent": "anomalyclip-batch",  # botocore puts its own together twice a request
    },
    "use_listings_cache": False,  # others write, too, and what is kept of a bucket of millions fills the memory
    "max_concurrency": 1,  # of the parts of one object: with more, s3fs asks for the size of each before it reads it
}


def default_store() -> str:
    """$ANOMALYCLIP_STORE, else ./store."""
    return os.environ.get("ANOMALYCLIP_STORE") or "./store"


def refuse_credentials(uri: str) -> None:
    """InputError, which does not repeat them, where a URI has a user or a password: they would be in every table and log."""
    if not re.match(WITHOUT_USER, uri):
        raise InputError(
            "a URI must not hold a user or a password before its host (scheme://user:password@host): "
            "give credentials by the environment, as AWS_… or FSSPEC_… variables"
        )


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI or local path, and the path in it. S3 is configured by the AWS variables.

    URIs are not chained: `::` is a part of a name like any other. Raises InputError for one that holds credentials.
    """
    refuse_credentials(uri)
    protocol = split_protocol(uri)[0] or "file"
    try:
        if protocol in S3:
            filesystem = fsspec.filesystem(protocol, **s3_options())
        else:
            from_uri = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(uri)  # what url_to_fs takes from it
            filesystem = fsspec.filesystem(protocol, **from_uri)
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"{uri!r} cannot be opened: {error}") from error
    if protocol in S3 and filesystem.session is None:
        filesystem.split_path = partial(split_path, filesystem)
        filesystem.session = s3_session(**filesystem.kwargs)
    path = filesystem._strip_protocol(uri)
    if isinstance(filesystem, LocalFileSystem):  # one spelling of a path, or its images would be others
        path = os.path.normpath("/" + path.lstrip("/"))
    return filesystem, path


def s3_options() -> dict[str, Any]:
    """Ours, but for what fsspec's own configuration (FSSPEC_S3_…) says."""
    given = {name: value for protocol in S3 for name, value in fsspec.config.conf.get(protocol, {}).items()}
    merged = S3_OPTIONS["config_kwargs"] | given.get("config_kwargs", {})
    return S3_OPTIONS | given | {"config_kwargs": merged}


def split_path(filesystem: Any, path: str) -> tuple[str, str, None]:
    """Bucket and key, as s3fs splits a path, but that what looks like a version at its end is a part of the key."""
    before, version, after = path.partition("?versionId=")
    bucket, key, _ = type(filesystem).split_path(filesystem, before)
    return bucket, key + version + after, None


def s3_session(**options: Any) -> Any:
    """As s3fs makes one, but for times: dateutil spends three quarters of a listing on them, and a tenth of a read."""
    from aiobotocore.session import AioSession

    session = AioSession(**options)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
    return session


def parse_time(value: Any) -> datetime:
    if isinstance(value, str) and value.endswith("Z"):
        return datetime.fromisoformat(value)
    if isinstance(value, str) and value.endswith("GMT"):
        return parsedate_to_datetime(value)
    from botocore.utils import parse_timestamp

    parsed: datetime = parse_timestamp(value)
    return parsed


def read_uri(uri: str) -> bytes:
    filesystem, path = open_filesystem(uri)
    return bytes(filesystem.cat_file(path))


@dataclass(frozen=True)
class Store:
    """Paths under one URI. Objects are written whole and appear whole."""

    uri: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        filesystem, root = open_filesystem(self.uri)
        return filesystem, root.rstrip("/")

    @property
    def fs(self) -> Any:
        return self._opened[0]

    @property
    def local_root(self) -> Path | None:
        """The root as a local folder, None for a remote store."""
        return Path(self._opened[1]) if isinstance(self.fs, LocalFileSystem) else None

    def path(self, *parts: str) -> str:
        return "/".join((self._opened[1], *parts))

    def uri_of(self, *parts: str) -> str:
        """Full URI of an object, as it is written into tables."""
        return str(self.fs.unstrip_protocol(self.path(*parts)))

    def read(self, *parts: str) -> bytes:
        return bytes(self.fs.cat_file(self.path(*parts)))

    def write(self, data: bytes, *parts: str) -> str:
        """Write one object atomically; returns its URI. A reader sees the old object, the new one, or none."""
        path = self.path(*parts)
        if self.local_root is None:
            self.fs.pipe_file(path, data, **self.content_type(path))
        else:
            write_file(Path(path), data)
        return self.uri_of(*parts)

    def create(self, data: bytes, *parts: str) -> bool:
        """Write one object as `write` does, unless there is one of this name; whether it was. One of many at once succeeds.

        A store that cannot say so at once (S3 without If-None-Match, a disk without hard links) is asked before it is
        written to: there two at the same moment may both succeed, and the last one stays.
        """
        path = self.path(*parts)
        try:
            if self.local_root is None:
                self.fs.pipe_file(path, data, mode="create")
            else:
                create_file(Path(path), data)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in TAKEN + NO_CREATE:
                raise
            if self.exists(*parts):
                return False
            if error.errno in TAKEN:
                raise
            self.write(data, *parts)
        return True

    def upload(self, file: Path, *parts: str) -> str:
        """Write a local file of any size as one object, as `write` does."""
        path = self.path(*parts)
        if self.local_root is None:
            self.fs.put_file(str(file), path)
        else:
            with replacing(Path(path)) as partial:
                shutil.copyfile(file, partial)
        return self.uri_of(*parts)

    def content_type(self, path: str) -> dict[str, str]:
        """What S3 is told of an object, so that a browser shows a page instead of saving it."""
        guessed = mimetypes.guess_type(path)[0] if split_protocol(self.uri)[0] in S3 else None
        return {"ContentType": guessed} if guessed else {}

    def check_writable(self) -> None:
        """InputError unless objects can be written: said before work starts, not at the end of its first hour."""
        try:
            self.write(b"", ".writable")
        except OSError as error:
            raise InputError(f"nothing can be written to the store {self.uri}: {error}") from error

    def exists(self, *parts: str) -> bool:
        """Whether there is an object of this name."""
        path = self.path(*parts)
        if split_protocol(self.uri)[0] not in S3:
            return bool(self.fs.exists(path))
        bucket, key, _ = self.fs.split_path(path)
        try:  # s3fs also lists where there is none, which costs as much as a write
            self.fs.call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    def find(self, *parts: str, suffix: str = "") -> list[str]:
        """Paths of all objects below a folder, relative to it, sorted; empty where there is no such folder."""
        folder = self.path(*parts)
        self.fs.invalidate_cache()
        bucket, _, key = folder.partition("/")
        on_s3 = split_protocol(self.uri)[0] in S3
        try:  # s3fs asks twice more whether a folder without objects is one itself, but not for a prefix
            paths: Sequence[str] = self.fs.find(bucket, prefix=f"{key}/") if on_s3 else self.fs.find(folder)
        except FileNotFoundError:
            return []
        return sorted(path[len(folder) + 1 :] for path in paths if path.endswith(suffix))


def write_file(path: Path, data: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(data)


def create_file(path: Path, data: bytes) -> None:
    """A file that appears whole; FileExistsError where there is one."""
    with aside(path) as partial:
        partial.write_bytes(data)
        to_disk(partial)
        os.link(partial, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which is renamed into place when it is finished."""
    with aside(path) as partial:
        yield partial
        to_disk(partial)
        os.replace(partial, path)


def to_disk(path: Path) -> None:
    """Before a name leads to it: else a power cut may leave the name with nothing behind it, which counts as done."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name in the same folder, where nothing stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
