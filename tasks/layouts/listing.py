"""What lies in a folder or below a prefix of a bucket, as a stream in an order that depends on its names alone.

S3 is listed in pages of 1,000 keys, a few ranges of keys at a time, two pages of each in memory. A local folder costs its
names, any other store the listing of one folder and of those above it.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tasks.errors import InputError

log = logging.getLogger(__name__)

PAGE = 1000  # keys, the most that S3 gives
RANGES = 8  # of keys, listed at the same time: more wait for the processor that reads the answers

Info = Mapping[str, Any]
Ask = Callable[..., dict[str, Any]]


def list_objects(filesystem: Any, root: str) -> Iterator[tuple[str, Info]]:
    """Name below the root, and the store's facts, of each object; hidden ones and folders are left out.

    Raises what the store raises where the root cannot be listed; where there is no root, there is nothing below it.
    """
    if hasattr(filesystem, "call_s3"):
        yield from bucket_objects(filesystem, root)
    elif isinstance(filesystem, LocalFileSystem):
        begin = identity(root)
        yield from folder_objects(filesystem, root, "")
        if begin != identity(root):  # as a file system that is unmounted: what was not listed is not deleted
            raise InputError(f"the source {root!r} went away while it was listed")
    else:
        yield from folder_objects(filesystem, root, "")


def identity(folder: str) -> tuple[int, int] | None:
    """Of what is at this place now, None where nothing is."""
    try:
        found = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def is_hidden(name: str) -> bool:
    """Also what a file system keeps for itself."""
    return name.startswith(".") or "/." in name or name.split("/", 1)[0] == "lost+found"


# --- S3 ---------------------------------------------------------------------------------------------------------------


def bucket_objects(filesystem: Any, root: str) -> Iterator[tuple[str, Info]]:
    """A page of each range in turn: the order is that of the keys where no range has more than a page."""
    bucket, _, key = root.partition("/")
    if not bucket:
        raise InputError("an S3 source names its bucket: s3://bucket/prefix")
    prefix = f"{key}/" if key else ""
    ask = partial(filesystem.call_s3, "list_objects_v2", Bucket=bucket, MaxKeys=PAGE)
    with ThreadPoolExecutor(RANGES) as pool:
        borders = find_borders(ask, prefix)
        waiting = deque(zip(["", *borders], [*borders, None], strict=True))
        open_ranges = deque[Iterator[list[Info]]]()
        while waiting or open_ranges:
            while waiting and len(open_ranges) < RANGES:
                open_ranges.append(range_pages(pool, partial(ask, Prefix=prefix), *waiting.popleft()))
            keys = open_ranges.popleft()
            if (page := next(keys, None)) is not None:
                open_ranges.append(keys)
                for info in page:
                    name = info["Key"][len(prefix) :]
                    if name and not name.endswith("/") and not is_hidden(name):
                        yield name, info


def find_borders(ask: Ask, prefix: str) -> list[str]:
    """Prefixes at which the keys are cut in about RANGES ranges; none where a page of names cannot tell them all."""
    while True:
        page = ask(Prefix=prefix, Delimiter="/")
        if page["IsTruncated"]:
            return []
        folders = [found["Prefix"] for found in page.get("CommonPrefixes", [])]
        if len(folders) != 1 or page.get("Contents"):
            step = -(-len(folders) // RANGES) or 1
            return folders[step::step]
        prefix = folders[0]


def range_pages(pool: ThreadPoolExecutor, ask: Ask, first: str, end: str | None) -> Iterator[list[Info]]:
    """Pages of the keys from `first` to before `end`; the next page is fetched while this one is used."""
    answer = pool.submit(ask, StartAfter=first)
    return follow_pages(pool, ask, answer, end)


def follow_pages(
    pool: ThreadPoolExecutor, ask: Ask, answer: "Future[dict[str, Any]]", end: str | None
) -> Iterator[list[Info]]:
    more = True
    while more:
        page = answer.result()
        found = page.get("Contents", [])
        inside = [info for info in found if end is None or info["Key"] < end]
        more = page["IsTruncated"] and len(inside) == len(found)
        if more:
            answer = pool.submit(ask, ContinuationToken=page["NextContinuationToken"])
        yield inside


# --- folders ----------------------------------------------------------------------------------------------------------


def folder_objects(filesystem: Any, root: str, above: str) -> Iterator[tuple[str, Info]]:
    """Folder by folder, in the order of whole names."""
    children = local_children if isinstance(filesystem, LocalFileSystem) else remote_children
    try:
        for name, info in children(filesystem, f"{root}/{above}".rstrip("/") or "/"):
            if is_hidden(name):
                continue
            if name.endswith("/"):
                yield from folder_objects(filesystem, root, above + name)
            elif info["type"] in ("file", "link"):
                yield above + name, info
            elif info.get("islink") and info["type"] == "directory":
                log.warning("%s/%s%s is a link to a folder: what is below it is left out", root, above, name)
    except (FileNotFoundError, NotADirectoryError):
        return  # it vanished meanwhile, or never was


def local_children(filesystem: LocalFileSystem, folder: str) -> Iterator[tuple[str, Info]]:
    """Names, those of folders with a slash, in order, and facts."""
    with os.scandir(folder) as entries:
        seen = (entry for entry in entries if not is_hidden(entry.name))
        names = sorted(f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in seen)
    for name in names:
        try:
            yield name, {} if name.endswith("/") else filesystem.info(f"{folder}/{name}")
        except OSError as error:
            if os.path.islink(f"{folder}/{name}"):  # a broken link: scoring finds it missing
                yield name, link_info(f"{folder}/{name}")
            elif not isinstance(error, FileNotFoundError):  # else it vanished meanwhile
                raise


def link_info(path: str) -> Info:
    found = os.lstat(path)
    return {"name": path, "type": "link", "size": 0, "mtime": found.st_mtime}


def remote_children(filesystem: Any, folder: str) -> Iterator[tuple[str, Info]]:
    infos = (info for info in filesystem.ls(folder, detail=True) if info["name"].rstrip("/") != folder)
    named = (
        (info["name"].rstrip("/").rpartition("/")[2] + "/" * (info["type"] == "directory"), info) for info in infos
    )
    yield from sorted(named, key=lambda child: child[0])
