"""The schemas are exactly those of the design, and the same rows give the same bytes."""

import threading
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from tasks.store import Store
from tasks.tables import (
    BATCH,
    MANIFEST,
    MAPS,
    READERS,
    ROW_GROUP,
    SCORES,
    count_rows,
    iter_parts,
    read_parquet,
    read_parts,
    to_parquet,
    to_table,
)

DESIGN = {
    "manifest": (
        MANIFEST,
        "image_id string, uri string, etag string, size int64, last_modified timestamp[us, tz=UTC], width int32, "
        "height int32, mode string, class_name string, split string, defect_type string, label int8, mask_uri string, "
        "status string, status_detail string",
    ),
    "scores": (
        SCORES,
        "image_id string, uri string, etag string, class_name string, score double, decision string, threshold double, "
        "mask_uri string, "
        "regions list<item: struct<x: int32, y: int32, w: int32, h: int32, area: int64, peak: double>>, "
        "bundle_digest string, error_kind string, error_detail string, p_value double",
    ),
    "maps": (MAPS, "image_id string, rows int32, cols int32, values binary"),
}


@pytest.mark.parametrize("name", DESIGN)
def test_a_table_has_the_columns_and_types_of_the_design(name: str):
    schema, expected = DESIGN[name]
    columns = [f"{field.name} {field.type}" for field in schema]
    assert ", ".join(columns).replace("element:", "item:") == expected


ROWS: list[dict[str, Any]] = [
    {"image_id": "a", "uri": "file:///ä\n", "last_modified": datetime(2026, 1, 2, 3, 4, 5, 678, UTC), "label": 1},
    {"image_id": "b", "label": None, "width": 2**31 - 1},
]


def test_rows_come_back_as_they_were_and_what_they_lack_is_null(store: Store):
    store.write(to_parquet(to_table(ROWS, MANIFEST)), "part.parquet")
    table = read_parquet(store, "part.parquet")
    assert table.schema.equals(MANIFEST)
    assert table.to_pylist() == [dict.fromkeys(MANIFEST.names) | row for row in ROWS]


def test_the_same_rows_give_the_same_bytes():
    assert to_parquet(to_table(ROWS, MANIFEST)) == to_parquet(to_table([dict(row) for row in ROWS], MANIFEST))


def test_a_value_that_does_not_fit_its_column_is_refused():
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        to_table([{"label": 300}], MANIFEST)


def test_parts_are_read_in_the_order_of_their_names(store: Store):
    for name in ("part-2", "part-1"):
        store.write(to_parquet(to_table([{"image_id": name}], SCORES)), "scores", f"{name}.parquet")
    store.write(b"no table", "scores", "note.txt")
    table = read_parts(store, "scores", schema=SCORES)
    assert table.schema.equals(SCORES)
    assert table["image_id"].to_pylist() == ["part-1", "part-2"]
    assert read_parts(store, "scores", schema=SCORES, columns=["image_id"]).column_names == ["image_id"]


def test_a_part_that_is_older_than_a_column_has_nulls_there(store: Store):
    store.write(
        to_parquet(to_table([{"image_id": "old"}], SCORES.remove(SCORES.get_field_index("p_value")))), "s/1.parquet"
    )
    store.write(to_parquet(to_table([{"image_id": "new", "p_value": 0.5}], SCORES)), "s/2.parquet")
    assert read_parts(store, "s", schema=SCORES)["p_value"].to_pylist() == [None, 0.5]
    columns = ["image_id", "p_value"]
    assert read_parts(store, "s", schema=SCORES, columns=columns).to_pylist() == [
        {"image_id": "old", "p_value": None}, {"image_id": "new", "p_value": 0.5},
    ]  # fmt: skip


def test_no_parts_give_an_empty_table_of_the_same_schema(store: Store):
    assert read_parts(store, "scores", schema=SCORES).schema.equals(SCORES)
    assert read_parts(store, "scores", schema=SCORES, columns=["score"]).schema.equals(
        pa.schema([SCORES.field("score")])
    )


@pytest.mark.parametrize("remote", [True, False])
def test_rows_are_counted_by_the_footer(store: Store, memory: str, remote: bool):
    place = Store(memory) if remote else store
    place.write(
        to_parquet(to_table([{"image_id": str(n)} for n in range(2 * ROW_GROUP + 9)], MANIFEST)), "part.parquet"
    )
    assert count_rows(place, "part.parquet") == 2 * ROW_GROUP + 9


def test_parts_that_are_read_ahead_come_in_order_and_whole(store: Store):
    sizes = [1] * READERS + [0, 2 * BATCH + 9, 1, 0]
    for number, size in enumerate(sizes):
        rows = [{"image_id": str(number), "size": row} for row in range(size)]
        store.write(to_parquet(to_table(rows, MANIFEST)), "m", str(number))
    numbers = [str(number) for number in range(len(sizes))]
    for number, size, batches in zip(numbers, sizes, iter_parts(store, ("m",), numbers, ["size"]), strict=True):
        assert [row for batch in batches for row in batch["size"].to_pylist()] == list(range(size)), number


def test_a_part_that_is_gone_raises_in_its_turn_and_leaves_no_thread(store: Store):
    store.write(to_parquet(to_table(ROWS, MANIFEST)), "m", "0")
    threads = threading.active_count()
    parts = iter_parts(store, ("m",), ["0", "gone", "gone, too"], ["image_id"])
    assert sum(len(batch) for batch in next(parts)) == len(ROWS)
    with pytest.raises(FileNotFoundError, match="gone"):
        next(parts)
    assert threading.active_count() == threads
