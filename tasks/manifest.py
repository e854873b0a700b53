"""Manifests: which object versions a collection holds, as immutable Parquet parts that only ever grow in number.

A part is named by its place in the order and by its content. Of ingests at once, one claims each place (an object
`_claims/<number>` that is created only where there is none); the others wait, and leave out what it has written. The
current state of a collection is the last row of each URI. Object versions that were never seen go into parts of their
own, whose slices are the shards of scoring; what changed about known ones (a label, or that they are gone: status
`deleted`) goes into parts named `…-facts`, which are not scored.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task

from tasks.errors import InputError
from tasks.images import Header, UnreadableImage, peek_header, read_header, read_mask
from tasks.known import DELETED, HEADER, Known, current_tables, read_known
from tasks.layouts import RANGE, Entry, open_version, read_version, stream_layout
from tasks.progress import advance, progress
from tasks.retries import RETRIED
from tasks.store import Store
from tasks.tables import MANIFEST, ROW_GROUP, in_blocks, read_parquet, to_parquet, to_table

log = logging.getLogger(__name__)
READERS = 16  # concurrent reads of image headers
BLOCK = 4096  # rows that are compared with the manifest at a time
PART_ROWS = 128 * ROW_GROUP
FACTS_PART = "-facts"
CLAIM_SECONDS = 60.0


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


def read_manifest(
    store: Store, collection: str, columns: Sequence[str] = MANIFEST.names, labelled: bool = False
) -> Manifest:
    """The current snapshot, with these columns, or of it the rows that have a label alone; raises InputError where nothing
    was ever ingested under this name."""
    parts = existing_parts(store, collection)
    tables = current_tables(store, manifest_folder(collection), parts, columns)
    if labelled:
        tables = (table.filter(pc.is_valid(table["label"])) for table in tables)
    return Manifest(collection, parts, digest_of(parts), pa.concat_tables(tables).to_pandas(types_mapper=nullable))


def stream_manifest(store: Store, collection: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of the current snapshot part by part; raises InputError as read_manifest does."""
    return current_tables(store, manifest_folder(collection), existing_parts(store, collection), columns)


def existing_parts(store: Store, collection: str) -> tuple[str, ...]:
    """As list_parts; raises InputError where nothing was ever ingested under this name."""
    if parts := list_parts(store, collection):
        return parts
    raise InputError(f"there is no collection {collection!r} in {store.uri!r}: run `anomalyclip ingest` first")


def list_parts(store: Store, collection: str) -> tuple[str, ...]:
    """Names of the parts (`dt=…/part-<number>-<digest>.parquet`) in the order in which they were written."""
    parts = store.find(*manifest_folder(check_name(collection)), suffix=".parquet")
    return tuple(sorted(parts, key=lambda part: part.rpartition("/")[2]))


def read_part(store: Store, collection: str, part: str, columns: list[str] | None = None) -> pa.Table:
    return read_parquet(store, *manifest_folder(collection), part, columns=columns)


def digest_of(parts: Iterable[str]) -> str:
    """Names the snapshot: the names of the parts hold the digests of their contents."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


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


@task(name="ingest", task_run_name="ingest {collection}", **RETRIED)
def ingest_source(
    store: str, collection: str, source: str, layout: str, probe: bool, split: str | None = None
) -> IngestSummary:
    """List a source in a layout and write what is new, changed or gone to the manifest; of splits only the named one.

    Masks and pictures that the store holds are no images of a source in which the store lies.
    """
    check_name(collection)
    target = Store(store)
    uri, entries = stream_layout(source, layout, collection)
    folders = (f"{target.uri_of(name)}/" for name in ("collections", "mlartifacts"))
    written = tuple(folder for folder in folders if not f"{uri}/".startswith(folder))
    images = (entry for entry in entries if not entry.object.uri.startswith(written))
    chosen = images if split is None else of_split(images, split.lower())
    return update_manifest(target, collection, uri, chosen, probe)


def of_split(entries: Iterable[Entry], split: str) -> Iterator[Entry]:
    """Those of this split and those of none; InputError where all are of others."""
    met = set[str | None]()
    for entry in entries:
        met.add(entry.split)
        if entry.split in (None, split):
            yield entry
    if met.isdisjoint({None, split}):
        raise InputError(f"no image is of the split {split!r}, but of {', '.join(map(repr, sorted(map(str, met))))}")


def update_manifest(
    store: Store,
    collection: str,
    source: str,
    entries: Iterable[Entry],
    probe: bool = False,
) -> IngestSummary:
    """Write what is new, changed or gone since the last snapshot, in parts of at most PART_ROWS; nothing where nothing did.

    Images are opened (status `ok`, or why not) where they have a mask, whose size has to agree, and with `probe` all that
    never were. In memory are one part, tasks.known of the parts before, and what the layout holds of the listing.
    """
    parts = list_parts(store, collection)
    known = read_known(store, manifest_folder(collection), parts)
    writer, counts = PartWriter(store, collection, parts), Counter[str]()
    with progress("ingest", None), ThreadPoolExecutor(READERS) as pool:
        for rows in in_blocks(map(to_row, entries), BLOCK):
            fresh = list(fresh_rows(known, rows, probe, counts))
            opened = open_rows(pool, [row for _, row in fresh], probe)
            for (kind, _), row in zip(fresh, opened, strict=True):
                counts["unreadable"] += row["status"] not in ("listed", "ok")
                writer.add(kind, row)
            advance(len(rows))
    for row in known.unlisted(source.rstrip("/") + "/"):
        counts["deleted"] += 1
        writer.add(FACTS_PART, row | {"status": DELETED})
    writer.finish()
    totals = {
        name: counts[name] for name in ("listed", "new", "changed", "unchanged", "deleted", "unreadable", "labelled")
    }
    return IngestSummary(collection=collection, source=source, digest=digest_of(writer.parts), **totals)


def fresh_rows(
    known: Known, rows: Sequence[dict[str, Any]], probe: bool, counts: "Counter[str]"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows that are to be written, each with the kind of its part: new and changed ones, with probe all never opened."""
    counts["listed"] += len(rows)
    for row, before in zip(rows, known.compare(rows), strict=True):
        counts["labelled"] += row["label"] is not None
        kind = FACTS_PART if before.seen else ""
        if before.number is None:
            counts["new"] += 1
            yield kind, row
        elif not before.same:
            counts["changed"] += 1
            yield kind, with_known_header(row, known.header(before.number)) if before.opened else row
        else:
            counts["unchanged"] += 1
            if probe and not before.opened:
                yield kind, row


def with_known_header(row: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what an earlier ingest found when it opened the same object version."""
    if before["image_id"] != row["image_id"]:
        return row
    return row | {name: before[name] for name in HEADER}


class PartWriter:
    """Collects rows and writes them as parts, of new object versions and of facts; `parts` are all of the manifest."""

    def __init__(self, store: Store, collection: str, parts: tuple[str, ...]) -> None:
        self.store, self.collection, self.parts = store, collection, parts
        self.rows: dict[str, list[dict[str, Any]]] = {"": [], FACTS_PART: []}
        self.tables: dict[str, list[pa.Table]] = {"": [], FACTS_PART: []}
        self.claim: tuple[str, ...] = ()  # of the next part's number
        self.others: list[pa.Table] = []  # image_id of what others have written since this ingest began

    def add(self, kind: str, row: dict[str, Any]) -> None:
        self.rows[kind].append(row)
        if len(self.rows[kind]) == ROW_GROUP:
            self.pack(kind)
            if len(self.tables[kind]) * ROW_GROUP == PART_ROWS:
                self.write(kind)

    def pack(self, kind: str) -> None:
        """Rows as a table take a tenth of the memory."""
        self.tables[kind].append(to_table(self.rows[kind], MANIFEST))
        self.rows[kind].clear()

    def finish(self) -> None:
        for kind in self.rows:
            self.pack(kind)
            self.write(kind)

    def write(self, kind: str) -> None:
        table = self.without_others(kind, pa.concat_tables(self.tables[kind]))
        self.tables[kind].clear()
        while len(table):
            others = self.parts_of_others()
            if not others:
                try:
                    if self.commit(kind, table):
                        return
                except BaseException:
                    with suppress(OSError):  # else the next try waits for this one
                        self.store.fs.rm_file(self.store.path(*self.claim))
                    raise
                continue
            self.parts += others
            self.others += [read_part(self.store, self.collection, part, ["image_id"]) for part in others]
            table = self.without_others(kind, table)

    def without_others(self, kind: str, table: pa.Table) -> pa.Table:
        """Rows that no other ingest has written; facts stay, as of those of one URI the last ones count."""
        if kind or not self.others:
            return table
        written = pa.concat_tables(self.others)["image_id"].combine_chunks()
        return table.filter(pc.invert(pc.is_in(table["image_id"], written)))

    def parts_of_others(self) -> tuple[str, ...]:
        """Parts that another ingest has written meanwhile; none where the next number is claimed for this one.

        Who claimed the number and wrote nothing for CLAIM_SECONDS is dead: one of those who wait takes it over.
        """
        takeover = 0
        while True:
            self.claim = self.claim_of(takeover)
            claimed = self.store.create(b"", *self.claim)
            started, said = time.monotonic(), False
            while (waited := time.monotonic() - started) <= CLAIM_SECONDS:
                others = tuple(part for part in list_parts(self.store, self.collection) if part not in self.parts)
                if others or claimed:
                    return others
                if waited > 5 and not said:
                    said = True
                    log.warning(
                        "another ingest of %r has begun or was killed: waiting for %.0f s",
                        self.collection, CLAIM_SECONDS,
                    )  # fmt: skip
                time.sleep(0.2)
            takeover += 1

    def claim_of(self, takeover: int) -> tuple[str, ...]:
        number = f"{len(self.parts):05d}" + (f"-{takeover}" if takeover else "")
        return *manifest_folder(self.collection), "_claims", number

    def commit(self, kind: str, table: pa.Table) -> bool:
        """False where another has taken the claim over, as of a machine that slept: then its part comes first."""
        data = to_parquet(table)
        takeover = int(self.claim[-1].partition("-")[2] or 0)
        if self.store.exists(*self.claim_of(takeover + 1)):
            return False
        name = f"part-{len(self.parts):05d}-{hashlib.sha256(data).hexdigest()[:12]}{kind}.parquet"
        part = f"dt={datetime.now(UTC).date()}/{name}"
        self.store.write(data, *manifest_folder(self.collection), part)
        self.parts = (*self.parts, part)
        return True


def open_rows(pool: ThreadPoolExecutor, rows: Sequence[dict[str, Any]], probe: bool) -> Iterable[dict[str, Any]]:
    """The rows; those with a mask, with `probe` all, with what opening their images says."""
    if not probe and not any(row["mask_uri"] for row in rows):
        return rows
    return pool.map(lambda row: probe_row(row) if probe or row["mask_uri"] else row, rows)


def probe_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what opening its image says; raises InputError where a mask has another size than its image, and
    PermissionError where the store refuses it: that may be the credentials' fault, and a row would stay."""
    try:
        header = probe_header(row)
    except UnreadableImage as error:
        if error.kind == "forbidden":
            raise PermissionError(f"{row['uri']} may not be read: {error.detail}") from error
        return row | {"status": error.kind, "status_detail": error.detail}
    if row["mask_uri"]:
        check_mask(row, header)
    return row | asdict(header) | {"status": "ok"}


def probe_header(row: Mapping[str, Any]) -> Header:
    """Of a small object, whose image is decoded, so that damage is found; of a larger one from its first bytes."""
    if row["size"] <= RANGE:
        return read_header(read_version(row))
    with open_version(row) as file:
        return peek_header(file)


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
