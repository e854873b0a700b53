"""Schemas of the tables, and Parquet in and out of the store."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.store import Store

Item = TypeVar("Item")
Begun = TypeVar("Begun")
ROW_GROUP = 1024  # rows: what a reader of some rows of a part has to read
BATCH = 4 * ROW_GROUP
READERS = 8  # parts that are opened at once
TIMESTAMP = pa.timestamp("us", tz="UTC")

MANIFEST = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("last_modified", TIMESTAMP),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("defect_type", pa.string()),
        ("label", pa.int8()),
        ("mask_uri", pa.string()),
        ("status", pa.string()),
        ("status_detail", pa.string()),
    ]
)

REGION = pa.struct(
    [
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("w", pa.int32()),
        ("h", pa.int32()),
        ("area", pa.int64()),
        ("peak", pa.float64()),
    ]
)

SCORES = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("class_name", pa.string()),
        ("score", pa.float64()),
        ("decision", pa.string()),
        ("threshold", pa.float64()),
        ("mask_uri", pa.string()),
        ("regions", pa.list_(REGION)),
        ("bundle_digest", pa.string()),
        ("error_kind", pa.string()),
        ("error_detail", pa.string()),
        ("p_value", pa.float64()),
    ]
)

MAPS = pa.schema([("image_id", pa.string()), ("rows", pa.int32()), ("cols", pa.int32()), ("values", pa.binary())])


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def to_parquet(table: pa.Table) -> bytes:
    """The same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP)
    return buffer.getvalue()


def read_parquet(
    store: Store, *parts: str, columns: list[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """One table; where a schema is given it has its columns, null where the file lacks them."""
    return pq.read_table(io.BytesIO(store.read(*parts)), columns=columns, schema=schema)


def iter_parquet(store: Store, *parts: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of one Parquet file in batches of at most BATCH, read as they are asked for."""
    with open_part(store, *parts) as file:
        yield from pq.ParquetFile(file, pre_buffer=True).iter_batches(BATCH, columns=columns)


def iter_parts(
    store: Store, folder: tuple[str, ...], parts: Iterable[str], columns: list[str]
) -> Iterator[Iterator[pa.RecordBatch]]:
    """The batches of each part, in order; of the next READERS parts the columns are already being read, not yet decoded
    but for a first batch."""

    def begin(part: str) -> Iterator[pa.RecordBatch]:
        batches = iter_parquet(store, *folder, part, columns=columns)
        return chain(list(islice(batches, 1)), batches)

    with ThreadPoolExecutor(READERS) as pool:
        for part in ahead(parts, lambda part: pool.submit(begin, part), READERS):
            yield part.result()


@lru_cache(maxsize=100_000)
def count_rows(store: Store, *parts: str) -> int:
    """Of a part that never changes: asked for once a process."""
    with open_part(store, *parts) as file:
        return int(pq.read_metadata(file).num_rows)


def count_rows_of(store: Store, folder: tuple[str, ...], parts: Iterable[str]) -> list[int]:
    """count_rows of each part, READERS at once."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda part: count_rows(store, *folder, part), parts))


def open_part(store: Store, *parts: str) -> Any:
    """For reading of ranges: fsspec's own reading ahead would fetch the whole part."""
    return store.fs.open(store.path(*parts), "rb", cache_type="none")


def read_parts(store: Store, *folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """All Parquet parts below a folder, in name order; an empty table where there are none."""
    parts = store.find(*folder, suffix=".parquet")
    empty = schema.empty_table().select(columns or schema.names)
    return pa.concat_tables(
        [empty] + [read_parquet(store, *folder, part, columns=columns, schema=schema) for part in parts]
    )


def in_blocks(rows: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many, the last one of the rest."""
    rows = iter(rows)
    while block := list(islice(rows, size)):
        yield block


def ahead(items: Iterable[Item], begin: Callable[[Item], Begun], number: int) -> Iterator[Begun]:
    """begin(item) of each item, in order; the next `number` have been begun by then."""
    begun = deque[Begun]()
    for item in items:
        begun.append(begin(item))
        if len(begun) > number:
            yield begun.popleft()
    while begun:
        yield begun.popleft()
