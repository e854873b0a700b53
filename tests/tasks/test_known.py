"""What a manifest holds already: sorted on disk, piece by piece, to the same as in one go."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tasks import known
from tasks.layouts.source import Entry, StoredObject
from tasks.manifest import list_parts, manifest_folder, read_manifest, update_manifest
from tasks.store import Store


def entry(uri: str, etag: str = "") -> Entry:
    return Entry(StoredObject(uri.rpartition("/")[2], uri, etag, 1, datetime(2026, 1, 1, tzinfo=UTC)), "part")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_pieces_together_are_the_order_of_all(monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    monkeypatch.setattr(known, "SLICE", 10)
    info = np.iinfo(dtype)
    drawn = np.random.default_rng(0).integers(info.min, info.max, 200, dtype, endpoint=True)
    values = known.on_disk(203, dtype)
    values[:] = [*drawn, info.max, info.min, drawn[0]]
    ranges = list(known.by_range(values))
    assert len(ranges) > 10
    assert all(np.array_equal(known.take(values, places), values[places]) for places in ranges)
    assert np.array_equal(np.concatenate([np.sort(values[places]) for places in ranges]), np.sort(values))


def test_the_last_row_of_each_uri_counts_however_small_the_pieces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(known, "SLICE", 5)
    store, source = Store(str(tmp_path)), "memory://bucket"
    update_manifest(store, "parts", source, [entry(f"{source}/{n}.png") for n in range(60)])
    update_manifest(store, "parts", source, [entry(f"{source}/{n}.png", etag=str(n % 2)) for n in range(40)])
    summary = update_manifest(store, "parts", source, [entry(f"{source}/{n}.png", etag="0") for n in range(10, 50)])
    assert (summary.new, summary.changed, summary.unchanged, summary.deleted) == (10, 15, 15, 10)
    rows = read_manifest(store, "parts").rows
    assert sorted(rows["uri"]) == sorted(f"{source}/{n}.png" for n in range(10, 50))
    assert set(rows["etag"]) == {"0"}
    everything = known.read_known(store, manifest_folder("parts"), list_parts(store, "parts"))
    assert len(everything.uris) == 60
    assert np.array_equal(everything.images, np.sort(everything.images))
