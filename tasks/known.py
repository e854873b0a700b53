"""What a manifest holds already, in a form that fits into memory: 29 bytes a URI and 8 an object version.

URIs and facts are held as 64-bit hashes. Of ten million objects, two share one with a probability of 3 in a million: one of
them would be taken for the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.store import Store
from tasks.tables import MANIFEST, iter_parquet, read_parquet

DELETED = "deleted"
FACTS = ("etag", "class_name", "split", "defect_type", "label", "mask_uri")  # a change of one makes a new row
HEADER = ("width", "height", "mode", "status", "status_detail")
LISTED, OPENED, GONE = range(3)  # what the last row of a URI says


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
    numbers: np.ndarray  # (N,) uint32: the last row of the URI
    states: np.ndarray  # (N,) uint8
    listed: np.ndarray  # (N,) bool: whether `compare` has met the URI
    images: np.ndarray  # (V,) uint64, sorted: the image_id of every row

    def compare(self, rows: Sequence[Mapping[str, Any]]) -> list[Before]:
        """Of each row that a listing gives; its URI counts as listed from now on."""
        places, found = look_up(self.uris, [hash(row["uri"]) for row in rows], np.int64)
        seen = look_up(self.images, [int(row["image_id"], 16) for row in rows], np.uint64)[1]
        self.listed[places[found]] = True
        return [
            Before(int(self.numbers[place]), bool(self.facts[place] == facts_hash(row)),
                   bool(self.states[place] == OPENED), bool(was_seen))
            if was_found and self.states[place] != GONE else Before(None, False, False, bool(was_seen))
            for row, place, was_found, was_seen in zip(rows, places, found, seen, strict=True)
        ]  # fmt: skip

    def header(self, number: int) -> dict[str, Any]:
        """image_id and HEADER of one row."""
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        table = read_headers(self.store, *self.folder, self.parts[part])
        return dict(table.slice(number - int(self.starts[part]), 1).to_pylist()[0])

    def unlisted(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Rows of the URIs with this beginning that are not deleted and that `compare` has not met."""
        numbers = np.sort(self.numbers[~self.listed & (self.states != GONE)]).astype(np.int64)
        for part, start, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
            first, last = np.searchsorted(numbers, (start, stop))
            if first == last:
                continue
            for batch in iter_parquet(self.store, *self.folder, part):
                rows = numbers[(numbers >= start) & (numbers < start + len(batch))] - start
                start += len(batch)
                yield from (row for row in batch.take(pa.array(rows)).to_pylist() if row["uri"].startswith(prefix))


def read_known(store: Store, folder: tuple[str, ...], parts: tuple[str, ...]) -> Known:
    """The last row of each URI, of these parts of a manifest."""
    lengths, uris, facts, states, images = [0], Column(np.int64), Column(np.int64), Column(np.uint8), Column(np.uint64)
    for part in parts:
        lengths.append(0)
        for batch in iter_parquet(
            store, *folder, part, columns=list(dict.fromkeys(["uri", "image_id", "status", *FACTS]))
        ):
            rows = batch.to_pylist()
            lengths[-1] += len(rows)
            uris.add(hash(row["uri"]) for row in rows)
            facts.add(facts_hash(row) for row in rows)
            states.add(state_of(row["status"]) for row in rows)
            images.add(int(row["image_id"], 16) for row in rows)
    all_uris = uris.joined()
    numbers = last_of_each(all_uris)
    return Known(
        store, folder, parts, np.cumsum(lengths), all_uris[numbers], facts.joined()[numbers], numbers,
        states.joined()[numbers], np.zeros(len(numbers), bool), np.unique(images.joined()),
    )  # fmt: skip


def current_tables(
    store: Store, folder: tuple[str, ...], parts: tuple[str, ...], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """These columns of the current rows (one a URI, deleted ones left out), part by part; 9 bytes a row are held."""
    uris, gone = Column(np.int64), Column(bool)
    for part in parts:
        for batch in iter_parquet(store, *folder, part, columns=["uri", "status"]):
            uris.add(map(hash, batch["uri"].to_pylist()))
            gone.add(status == DELETED for status in batch["status"].to_pylist())
    current = ~gone.joined()
    last = np.zeros(len(current), bool)
    last[last_of_each(uris.joined())] = True
    current &= last
    start = 0
    for part in parts:
        table = read_parquet(store, *folder, part, columns=list(columns)).select(columns)
        yield table.filter(pa.array(current[start : start + len(table)]))
        start += len(table)


class Column:
    """Numbers that are added batch by batch."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.arrays = dtype, [np.empty(0, dtype)]

    def add(self, values: Iterable[Any]) -> None:
        self.arrays.append(np.fromiter(values, self.dtype))

    def joined(self) -> np.ndarray:
        """All of them; they are not held here any longer."""
        joined = np.concatenate(self.arrays)
        self.arrays.clear()
        return joined


def last_of_each(values: np.ndarray) -> np.ndarray:
    """Where each value is found last, in the order of the values, as uint32."""
    order = np.argsort(values, kind="stable").astype(np.uint32)
    is_last = np.ones(len(values), bool)
    np.not_equal(values[order[1:]], values[order[:-1]], out=is_last[:-1])
    return order[is_last]


def facts_hash(row: Mapping[str, Any]) -> int:
    return hash(tuple([row[fact] for fact in FACTS]))


def state_of(status: str) -> int:
    return {"listed": LISTED, DELETED: GONE}.get(status, OPENED)


def look_up(values: np.ndarray, keys: Iterable[int], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Places of keys in sorted values, and whether they are there."""
    wanted = np.array(keys, dtype)
    if not len(values):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return places, values[places] == wanted


@lru_cache(maxsize=4)
def read_headers(store: Store, *part: str) -> pa.Table:
    return read_parquet(store, *part, columns=["image_id", *HEADER], schema=MANIFEST)
