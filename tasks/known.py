"""What a manifest holds already, in a form that fits into memory: 22 bytes a URI and 8 a row.

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
from tasks.tables import MANIFEST, count_rows, iter_parquet, read_parquet

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
    images: np.ndarray  # (V,) uint64, sorted: the image_id of every row, some more than once

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
    """The last row of each URI, of these parts of a manifest. It takes up to 50 bytes a row meanwhile."""
    starts = row_numbers(store, folder, parts)
    uris, facts, images = (
        np.empty(starts[-1], np.int64),
        np.empty(starts[-1], np.int64),
        np.empty(starts[-1], np.uint64),
    )
    states, stop = np.empty(starts[-1], np.uint8), 0
    for part in parts:
        for batch in iter_parquet(
            store, *folder, part, columns=list(dict.fromkeys(["uri", "image_id", "status", *FACTS]))
        ):
            rows = batch.to_pylist()
            start, stop = stop, stop + len(rows)
            uris[start:stop] = [hash(row["uri"]) for row in rows]
            facts[start:stop] = [facts_hash(row) for row in rows]
            states[start:stop] = [state_of(row["status"]) for row in rows]
            images[start:stop] = [int(row["image_id"], 16) for row in rows]
    images.sort()
    numbers = last_of_each(uris)
    uris = uris[numbers]
    facts = facts[numbers]
    states = states[numbers]
    return Known(store, folder, parts, starts, uris, facts, numbers, states, np.zeros(len(numbers), bool), images)


def row_numbers(store: Store, folder: tuple[str, ...], parts: tuple[str, ...]) -> np.ndarray:
    """(parts + 1,) int64: number of the first row of each part, and of all rows."""
    return np.cumsum([0, *(count_rows(store, *folder, part) for part in parts)])


def current_tables(
    store: Store, folder: tuple[str, ...], parts: tuple[str, ...], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """These columns of the current rows (one a URI, deleted ones left out), part by part; 10 bytes a row are held."""
    starts = row_numbers(store, folder, parts)
    uris, current, stop = np.empty(starts[-1], np.int64), np.empty(starts[-1], bool), 0
    for part in parts:
        for batch in iter_parquet(store, *folder, part, columns=["uri", "status"]):
            start, stop = stop, stop + len(batch)
            uris[start:stop] = [hash(uri) for uri in batch["uri"].to_pylist()]
            current[start:stop] = [status != DELETED for status in batch["status"].to_pylist()]
    last = np.zeros(len(current), bool)
    last[last_of_each(uris)] = True
    current &= last
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        table = read_parquet(store, *folder, part, columns=list(columns)).select(columns)
        yield table.filter(pa.array(current[start:stop]))


def last_of_each(values: np.ndarray) -> np.ndarray:
    """Where each value is found last, in the order of the values, as uint32."""
    order = np.argsort(values, kind="stable").astype(np.uint32)
    in_order = values[order]
    is_last = np.ones(len(values), bool)
    np.not_equal(in_order[1:], in_order[:-1], out=is_last[:-1])
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
