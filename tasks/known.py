"""What a manifest holds already, in unnamed temporary files that are mapped into memory: about 60 bytes a row on disk.

Memory does not grow with the manifest: pages are given back as soon as they were read or written. URIs and facts are held
as 64-bit hashes. Of ten million objects, two share one with a probability of 3 in a million: one of them would be taken
for the other.
"""

import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.store import Store
from tasks.tables import MANIFEST, count_rows_of, iter_parquet, iter_parts, read_parquet

DELETED = "deleted"
FACTS = ("etag", "class_name", "split", "defect_type", "label", "mask_uri")  # a change of one makes a new row
HEADER = ("width", "height", "mode", "status", "status_detail")
LISTED, OPENED, GONE = range(3)  # what the last row of a URI says
SLICE = 1 << 18  # values that are sorted or read in one go
BLOCK = 1 << 20  # bytes that are written in one go


class Before(NamedTuple):
    """What is known of a listed row: number of the last row of its URI, None where there is none or it is deleted.

    same: no fact has changed; opened: its header was read; seen: this object version has a row in some part.
    """

    number: int | None
    same: bool
    opened: bool
    seen: bool


@dataclass(frozen=True)
class Known:
    """Rows are numbered through all parts, in the order of the parts; N URIs in the order of their hashes, V versions."""

    store: Store
    folder: tuple[str, ...]
    parts: tuple[str, ...]
    starts: np.ndarray  # (parts + 1,) int64: number of the first row of each part
    uris: np.ndarray  # (N,) int64
    facts: np.ndarray  # (N,) int64
    numbers: np.ndarray  # (N,) int64: the last row of the URI
    states: np.ndarray  # (N,) uint8
    listed: np.ndarray  # (N,) bool: whether `compare` has met the URI
    images: np.ndarray  # (V,) uint64, sorted: the image_id of every row, some more than once

    def compare(self, rows: Sequence[Mapping[str, Any]]) -> list[Before]:
        """Of each row that a listing gives; its URI counts as listed from now on."""
        places, found = look_up(self.uris, np.array([hash(row["uri"]) for row in rows], np.int64))
        seen = look_up(self.images, np.array([int(row["image_id"], 16) for row in rows], np.uint64))[1]
        self.listed[places[found]] = True
        give_back(self.listed)
        numbers, facts, states = (take(values, places) for values in (self.numbers, self.facts, self.states))
        return [
            Before(int(number), bool(fact == facts_hash(row)), bool(state == OPENED), bool(was_seen))
            if was_found and state != GONE
            else Before(None, False, False, bool(was_seen))
            for row, number, fact, state, was_found, was_seen in zip(
                rows, numbers, facts, states, found, seen, strict=True
            )
        ]

    def header(self, number: int) -> dict[str, Any]:
        """image_id and HEADER of one row."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        table = read_headers(self.store, *self.folder, self.parts[part])
        return dict(table.slice(number - int(self.starts[part]), 1).to_pylist()[0])

    def unlisted(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Rows of the URIs with this beginning that are not deleted and that `compare` has not met."""
        left = on_disk(int(self.starts[-1]), bool)
        for part in slices(len(self.numbers)):
            left[self.numbers[part][~self.listed[part] & (self.states[part] != GONE)]] = True
            give_back(left, self.numbers, self.listed, self.states)
        for name, start, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
            if not left[start:stop].any():
                continue
            for batch in iter_parquet(self.store, *self.folder, name):
                chosen = np.flatnonzero(left[start : start + len(batch)])
                start += len(batch)
                yield from (row for row in batch.take(pa.array(chosen)).to_pylist() if row["uri"].startswith(prefix))


def read_known(store: Store, folder: tuple[str, ...], parts: tuple[str, ...]) -> Known:
    """The last row of each URI, of these parts of a manifest."""
    starts = row_numbers(store, folder, parts)
    n, stop = int(starts[-1]), 0
    uris, facts, images, states = (on_disk(n, dtype) for dtype in (np.int64, np.int64, np.uint64, np.uint8))
    columns = list(dict.fromkeys(["uri", "image_id", "status", *FACTS]))
    for batches in iter_parts(store, folder, parts, columns):
        for batch in batches:
            rows = batch.to_pylist()
            start, stop = stop, stop + len(rows)
            uris[start:stop] = [hash(row["uri"]) for row in rows]
            facts[start:stop] = [facts_hash(row) for row in rows]
            states[start:stop] = [state_of(row["status"]) for row in rows]
            images[start:stop] = [int(row["image_id"], 16) for row in rows]
        give_back(uris, facts, images, states)
    last = on_disk(n, np.int64), on_disk(n, np.int64), on_disk(n, np.int64), on_disk(n, np.uint8)
    found = 0
    for rows in by_range(uris):
        chosen = last_of_each(take(uris, rows))
        start, found = found, found + len(chosen)
        for values, these in zip(last, (take(uris, rows), take(facts, rows), rows, take(states, rows)), strict=True):
            values[start:found] = these[chosen]
        give_back(*last)
    seen, stop = on_disk(n, np.uint64), 0
    for rows in by_range(images):
        start, stop = stop, stop + len(rows)
        seen[start:stop] = np.sort(take(images, rows))
        give_back(seen)
    uris, facts, numbers, states = (values[:found] for values in last)
    return Known(store, folder, parts, starts, uris, facts, numbers, states, on_disk(found, bool), seen)


def on_disk(n: int, dtype: Any) -> np.ndarray:
    """n zeros in a temporary file that is gone when they are, and when the process is killed."""
    with tempfile.TemporaryFile(prefix="anomalyclip-") as file:
        size = max(1, n) * np.dtype(dtype).itemsize
        for start in range(0, size, BLOCK):  # written: holes that a full disk cannot fill would kill the process
            file.write(bytes(min(BLOCK, size - start)))
        file.flush()
        mapped: np.ndarray = np.memmap(file, dtype, "r+", shape=(max(1, n),))
        return mapped[:n]


def give_back(*arrays: np.ndarray) -> None:
    """Unmap the pages of arrays on disk; what they hold is read again when it is asked for."""
    for array in arrays:
        if len(array):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def slices(n: int) -> Iterator[slice]:
    return (slice(start, start + SLICE) for start in range(0, n, SLICE))


def by_range(values: np.ndarray) -> Iterator[np.ndarray]:
    """Ascending places of the values of one range after the other, each holding about SLICE of them: one scan a range.

    Hashes are spread evenly, so equal ranges hold about equally many; equal values are in one range.
    """
    ranges = len(values) // SLICE + 1
    info = np.iinfo(values.dtype)
    edges = [info.min + (info.max - info.min) * number // ranges for number in range(ranges)] + [info.max]
    for low, high in pairwise(edges):
        found = [np.empty(0, np.int64)]
        for part in slices(len(values)):
            inside = (values[part] >= low) & ((values[part] < high) | (high == info.max))
            found.append(part.start + np.flatnonzero(inside))
            give_back(values)
        yield np.concatenate(found)


def take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """values[places], with one slice of the values in memory at a time; zeros where there are no values."""
    order = np.argsort(places)
    ordered, found = places[order], np.zeros(len(places), values.dtype)
    for part in slices(len(values)):
        here = slice(*np.searchsorted(ordered, (part.start, part.stop)))
        found[order[here]] = values[ordered[here]]
        give_back(values)
    return found


def look_up(values: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of keys in sorted values, and whether they are there; one slice of the values in memory at a time."""
    order = np.argsort(keys)
    ordered, places, start = keys[order], np.zeros(len(keys), np.int64), 0
    for part in slices(len(values)):
        stop = int(np.searchsorted(ordered, values[part][-1], side="right"))
        places[order[start:stop]] = part.start + np.searchsorted(values[part], ordered[start:stop])
        start = stop
        give_back(values)
    return places, (take(values, places) == keys) & bool(len(values))


def row_numbers(store: Store, folder: tuple[str, ...], parts: tuple[str, ...]) -> np.ndarray:
    """(parts + 1,) int64: number of the first row of each part, and of all rows."""
    return np.cumsum([0, *count_rows_of(store, folder, parts)])


def current_tables(
    store: Store, folder: tuple[str, ...], parts: tuple[str, ...], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """These columns of the current rows (one a URI, deleted ones left out), part by part, one of which is held."""
    starts = row_numbers(store, folder, parts)
    uris, deleted, stop = on_disk(int(starts[-1]), np.int64), on_disk(int(starts[-1]), bool), 0
    for batches in iter_parts(store, folder, parts, ["uri", "status"]):
        for batch in batches:
            start, stop = stop, stop + len(batch)
            uris[start:stop] = [hash(uri) for uri in batch["uri"].to_pylist()]
            deleted[start:stop] = [status == DELETED for status in batch["status"].to_pylist()]
        give_back(uris, deleted)
    current = on_disk(len(uris), bool)
    for rows in by_range(uris):
        last = rows[last_of_each(take(uris, rows))]
        current[last] = ~deleted[last]
        give_back(deleted, current)
    schema = pa.schema([field for field in MANIFEST if field.name in columns])
    for batches, start, stop in zip(iter_parts(store, folder, parts, schema.names), starts, starts[1:], strict=False):
        table = pa.Table.from_batches(batches, schema).select(columns)
        yield table.filter(pa.array(current[start:stop]))


def last_of_each(values: np.ndarray) -> np.ndarray:
    """Where each value is found last, in the order of the values."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    is_last = np.ones(len(values), bool)
    np.not_equal(in_order[1:], in_order[:-1], out=is_last[:-1])
    return order[is_last]


def facts_hash(row: Mapping[str, Any]) -> int:
    return hash(tuple([row[fact] for fact in FACTS]))


def state_of(status: str) -> int:
    return {"listed": LISTED, DELETED: GONE}.get(status, OPENED)


@lru_cache(maxsize=4)
def read_headers(store: Store, *part: str) -> pa.Table:
    return read_parquet(store, *part, columns=["image_id", *HEADER], schema=MANIFEST)
