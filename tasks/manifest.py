"""Manifests: which object versions a collection holds, as immutable Parquet parts that only ever grow in number.

A part is named by its place in the order and by its content, so two ingests at once at worst list an image twice. The
current state of a collection is the last row of each URI. Object versions that were never seen go into parts of their
own, whose slices are the shards of scoring; what changed about known ones (a label, or that they are gone: status
`deleted`) goes into parts named `…-facts`, which are not scored.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import InputError
from tasks.images import Header, UnreadableImage, read_header, read_mask
from tasks.layouts import Entry, read_layout, read_version
from tasks.progress import advance, progress
from tasks.retries import DELAYS, JITTER, RETRIES, transient
from tasks.store import Store
from tasks.tables import MANIFEST, read_parquet, to_parquet, to_table

DELETED = "deleted"
READERS = 16  # concurrent reads of image headers
FACTS_PART = "-facts"
FACTS = ("etag", "class_name", "split", "defect_type", "label", "mask_uri")  # a change of one makes a new row


@dataclass(frozen=True)
class IngestSummary:
    """Counts of images; digest names the snapshot of the manifest after this ingest."""

    collection: str
    source: str
    listed: int
    new: int
    changed: int
    unchanged: int
    deleted: int
    unreadable: int
    labelled: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """A snapshot: the parts in order, their digest, and the current rows (one a URI, deleted ones left out)."""

    collection: str
    parts: tuple[str, ...]
    digest: str
    rows: pd.DataFrame


def manifest_folder(collection: str) -> tuple[str, ...]:
    return "collections", collection, "manifest"


def check_name(collection: str) -> str:
    """A collection's name is one folder of the store; raises InputError for anything else."""
    allowed = all(c.isalnum() or c in "-_." for c in collection)
    if not collection or not allowed or collection.startswith("."):
        raise InputError(f"{collection!r} is no name for a collection: use letters, digits, '-', '_' and '.'")
    return collection


def read_manifest(store: Store, collection: str, columns: Iterable[str] = MANIFEST.names) -> Manifest:
    """The current snapshot, with these columns; raises InputError where nothing was ever ingested under this name."""
    parts = list_parts(store, collection)
    if not parts:
        raise InputError(f"there is no collection {collection!r} in {store.uri!r}: run `anomalyclip ingest` first")
    needed = list(dict.fromkeys([*columns, "uri", "status"]))
    tables = (read_part(store, collection, part, needed) for part in parts)
    return Manifest(collection, parts, digest_of(parts), current_rows(tables))


def list_parts(store: Store, collection: str) -> tuple[str, ...]:
    """Names of the parts (`dt=…/part-<number>-<digest>.parquet`) in the order in which they were written."""
    parts = store.find(*manifest_folder(check_name(collection)), suffix=".parquet")
    return tuple(sorted(parts, key=lambda part: part.rpartition("/")[2]))


def read_part(store: Store, collection: str, part: str, columns: list[str] | None = None) -> pa.Table:
    return read_parquet(store, *manifest_folder(collection), part, columns=columns)


def digest_of(parts: Iterable[str]) -> str:
    """Names the snapshot: the names of the parts hold the digests of their contents."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def current_rows(tables: Iterable[pa.Table]) -> pd.DataFrame:
    frames: list[pd.DataFrame] = [table.to_pandas(types_mapper=nullable) for table in tables]
    rows = pd.concat(frames or [MANIFEST.empty_table().to_pandas()]).drop_duplicates("uri", keep="last")
    return rows[rows["status"] != DELETED].reset_index(drop=True)


def nullable(arrow_type: pa.DataType) -> Any:
    """Pandas types that keep integers with nulls as integers."""
    return {pa.int8(): pd.Int8Dtype(), pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}.get(arrow_type)


def image_id(uri: str, etag: str) -> str:
    return hashlib.sha256(f"{uri}\n{etag}".encode()).hexdigest()[:16]


def to_row(entry: Entry) -> dict[str, Any]:
    found = entry.object
    return {
        "image_id": image_id(found.uri, found.etag),
        "uri": found.uri,
        "etag": found.etag,
        "size": found.size,
        "last_modified": found.last_modified,
        "class_name": entry.class_name,
        "split": entry.split,
        "defect_type": entry.defect_type,
        "label": entry.label,
        "mask_uri": entry.mask_uri,
        "status": "listed",
    }


@task(
    name="ingest", task_run_name="ingest {collection}", cache_policy=NO_CACHE,
    retries=RETRIES, retry_delay_seconds=DELAYS, retry_jitter_factor=JITTER, retry_condition_fn=transient,
)  # fmt: skip
def ingest_source(store: str, collection: str, source: str, layout: str, probe: bool) -> IngestSummary:
    """List a source in a layout and write what is new, changed or gone to the manifest."""
    check_name(collection)
    uri, entries = read_layout(source, layout, collection)
    return update_manifest(Store(store), collection, uri, entries, probe)


def update_manifest(
    store: Store,
    collection: str,
    source: str,
    entries: list[Entry],
    probe: bool = False,
) -> IngestSummary:
    """Write one part with what is new, changed or gone since the last snapshot; nothing where nothing did.

    Images are opened (status `ok`, or why not) where they have a mask, whose size has to agree, and with `probe` all that
    never were.
    """
    parts = list_parts(store, collection)
    tables = [read_part(store, collection, part) for part in parts]
    known, seen = current_rows(tables), {image for table in tables for image in table["image_id"].to_pylist()}
    before = {row["uri"]: row for row in records(known)}
    rows = [with_known_header(row, before.get(row["uri"])) for row in map(to_row, entries)]
    fresh = [row for row in rows if changed(row, before.get(row["uri"]))]
    unopened = [row for row in rows if probe and row["status"] == "listed" and not changed(row, before.get(row["uri"]))]
    gone = gone_rows(before, {row["uri"] for row in rows}, source)
    with progress("ingest", len(fresh) + len(unopened)), ThreadPoolExecutor(READERS) as pool:
        probed = []
        for row in pool.map(lambda row: probe_row(row) if probe or row["mask_uri"] else row, fresh + unopened):
            probed.append(row)
            advance()
    facts = [row for row in probed if row["image_id"] in seen] + gone
    for kind, part_rows in (("", [row for row in probed if row["image_id"] not in seen]), (FACTS_PART, facts)):
        if part_rows:
            parts = (*parts, write_part(store, collection, part_rows, len(parts), kind))
    new = sum(row["uri"] not in before for row in fresh)
    return IngestSummary(
        collection=collection,
        source=source,
        listed=len(rows),
        new=new,
        changed=len(fresh) - new,
        unchanged=len(rows) - len(fresh),
        deleted=len(gone),
        unreadable=sum(row["status"] not in ("listed", "ok") for row in probed),
        labelled=sum(row["label"] is not None for row in rows),
        digest=digest_of(parts),
    )


def changed(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    return before is None or any(row[fact] != before[fact] for fact in FACTS)


def with_known_header(row: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The row with what an earlier ingest found when it opened the same object version."""
    if before is None or before["image_id"] != row["image_id"]:
        return row
    return row | {name: before[name] for name in ("width", "height", "mode", "status", "status_detail")}


def gone_rows(before: Mapping[str, dict[str, Any]], listed: set[str], source: str) -> list[dict[str, Any]]:
    """A row of status `deleted` for each known object of this source that is no longer listed."""
    prefix = source.rstrip("/") + "/"
    return [row | {"status": DELETED} for uri, row in before.items() if uri.startswith(prefix) and uri not in listed]


def write_part(store: Store, collection: str, rows: list[dict[str, Any]], number: int, kind: str) -> str:
    data = to_parquet(to_table(rows, MANIFEST))
    digest = hashlib.sha256(data).hexdigest()[:12]
    part = f"dt={datetime.now(UTC).date()}/part-{number:05d}-{digest}{kind}.parquet"
    store.write(data, *manifest_folder(collection), part)
    return part


def probe_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what opening its image says; raises InputError where a mask has another size than its image."""
    try:
        header = read_header(read_version(row))
    except UnreadableImage as error:
        return row | {"status": error.kind, "status_detail": error.detail}
    if row["mask_uri"]:
        check_mask(row, header)
    return row | asdict(header) | {"status": "ok"}


def check_mask(row: Mapping[str, Any], image: Header) -> None:
    mask = read_mask(row["mask_uri"])
    if (mask.width, mask.height) != (image.width, image.height):
        raise InputError(
            f"the mask {row['mask_uri']} is {mask.width} x {mask.height} pixels, "
            f"its image {row['uri']} is {image.width} x {image.height}"
        )


def labelled_test_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Labelled images, of those with a split only `test`: the published protocol trains and evaluates on these."""
    return rows[rows["label"].notna() & (rows["split"].isna() | (rows["split"] == "test"))]


def records(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows as dicts with None for nulls."""
    columns = [str(name) for name in rows.columns]
    values = rows.astype(object).where(rows.notna(), None)
    return (dict(zip(columns, row, strict=True)) for row in values.itertuples(index=False, name=None))
