"""Manifests: their contract, and that they only ever record what is new, changed or gone."""

import errno
import hashlib
import io
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import s3fs
from PIL import Image

from tasks import manifest
from tasks.errors import InputError
from tasks.layouts import RANGE, read_layout
from tasks.manifest import (
    IngestSummary,
    PartWriter,
    digest_of,
    ingest_source,
    list_parts,
    read_manifest,
    read_part,
    records,
)
from tasks.store import Store
from tests.tasks.conftest import photo, write_photos

CONTRACT = {
    "image_id": pa.string(), "uri": pa.string(), "etag": pa.string(), "size": pa.int64(),
    "last_modified": pa.timestamp("us", tz="UTC"), "width": pa.int32(), "height": pa.int32(), "mode": pa.string(),
    "class_name": pa.string(), "split": pa.string(), "defect_type": pa.string(), "label": pa.int8(),
    "mask_uri": pa.string(), "status": pa.string(), "status_detail": pa.string(),
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_photos(tmp_path / "source" / "good", range(4))
    write_photos(tmp_path / "source" / "bent", range(4, 6))
    return tmp_path / "source"


def ingest(store: Store, source: Path | str, layout: str = "folders", probe: bool = False):
    return ingest_source.fn(store.uri, "parts", str(source), layout, probe)


def test_the_table_is_the_one_of_the_contract(store: Store, source: Path) -> None:
    ingest(store, source)
    (part,) = list_parts(store, "parts")
    table = read_part(store, "parts", part)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == CONTRACT
    for row in table.to_pylist():
        assert row["image_id"] == hashlib.sha256(f"{row['uri']}\n{row['etag']}".encode()).hexdigest()[:16]
        assert row["status"] == "listed"
        assert row["size"] == Path(row["uri"].removeprefix("file://")).stat().st_size


@pytest.mark.parametrize("below", ["", "images"])
def test_what_the_store_holds_is_no_image_of_a_source_around_it(store: Store, below: str) -> None:
    """`ingest .` beside ./store, or a bucket that is both: masks and logged pictures are not scored in their turn."""
    root = Path(store.uri)
    write_photos(root / below, range(2))
    for own in ("collections/parts/masks/model=m.v1", "mlartifacts/1"):
        write_photos(root / own, range(2, 4))
    assert ingest(store, root / below, "flat").listed == 2
    assert ingest(store, root / "collections/parts/masks", "flat").listed == 2  # by its own name it may be one


def test_an_unchanged_source_adds_no_part(store: Store, source: Path) -> None:
    first, second = ingest(store, source), ingest(store, source)
    assert (first.new, second.new, second.unchanged) == (6, 0, 6)
    assert first.digest == second.digest
    assert len(list_parts(store, "parts")) == 1


def test_new_changed_and_deleted_objects_are_told_apart(store: Store, source: Path) -> None:
    before = ingest(store, source).digest
    write_photos(source / "good", range(10, 12))
    photo(99, 33, 44).save(source / "good/000.png")
    (source / "bent/005.png").unlink()
    summary = ingest(store, source)
    assert (summary.new, summary.changed, summary.unchanged, summary.deleted) == (2, 1, 4, 1)
    manifest = read_manifest(store, "parts")
    assert manifest.digest == summary.digest != before
    assert sorted(Path(uri).name for uri in manifest.rows["uri"]) == [
        "000.png", "001.png", "002.png", "003.png", "004.png", "010.png", "011.png",
    ]  # fmt: skip


KILLED = """
import sys
from tasks import manifest

manifest.PART_ROWS = manifest.ROW_GROUP = manifest.BLOCK = 64
manifest.ingest_source.fn(sys.argv[1], "parts", sys.argv[2], "flat", False)
"""


def test_an_ingest_that_is_killed_leaves_whole_parts_and_the_next_one_goes_on(
    store: Store, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "source").mkdir()
    for number in range(12_800):
        (tmp_path / f"source/{number:04d}.png").touch()
    command = [sys.executable, "-c", KILLED, store.uri, str(tmp_path / "source")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    while len(list_parts(store, "parts")) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    parts = list_parts(store, "parts")
    assert len(parts) < 200
    assert {len(read_part(store, "parts", part)) for part in parts} == {64}
    monkeypatch.setattr(manifest, "CLAIM_SECONDS", 0.5)  # it may have died between a claim and its part
    summary = ingest(store, tmp_path / "source", "flat")
    assert (summary.listed, summary.unchanged) == (12_800, 64 * len(parts))
    assert to_be_scored(store) == sorted(read_manifest(store, "parts").rows["image_id"])


def test_an_object_that_comes_back_is_current_again(store: Store, source: Path) -> None:
    ingest(store, source)
    path = source / "good/000.png"
    data, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.unlink()
    assert ingest(store, source).deleted == 1
    last = read_part(store, "parts", list_parts(store, "parts")[-1]).to_pylist()
    assert [(row["uri"], row["status"]) for row in last] == [(f"file://{path}", "deleted")]
    assert len(read_manifest(store, "parts").rows) == 5
    path.write_bytes(data)
    os.utime(path, ns=times)
    assert ingest(store, source).new == 1
    assert len(read_manifest(store, "parts").rows) == 6
    assert [part.endswith("-facts.parquet") for part in list_parts(store, "parts")] == [False, True, True]


def test_other_sources_of_a_collection_are_left_alone(store: Store, source: Path, tmp_path: Path) -> None:
    ingest(store, source)
    write_photos(tmp_path / "second" / "good", range(3))
    assert ingest(store, tmp_path / "second").deleted == 0
    assert len(read_manifest(store, "parts").rows) == 9


def test_a_new_label_changes_the_row_and_not_what_is_to_be_scored(store: Store, source: Path) -> None:
    ingest(store, source, "flat")
    assert ingest(store, source, "folders").changed == 6
    parts = list_parts(store, "parts")
    assert [part.endswith("-facts.parquet") for part in parts] == [False, True]
    assert read_manifest(store, "parts").rows["label"].sum() == 2


def test_two_ingests_at_once_lose_nothing_and_list_nothing_twice(store: Store, source: Path) -> None:
    ingest(store, source)
    write_photos(source / "good", range(10, 15))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ingest(store, source), range(4)))
    rows = read_manifest(store, "parts").rows
    assert len(rows) == 11
    assert rows["uri"].is_unique
    assert ingest(store, source).unchanged == 11


def test_two_ingests_of_different_moments_at_once_lose_nothing(store: Store, source: Path, monkeypatch) -> None:
    """The first has read the manifest, and writes only after the second, which sees more images, has written."""
    real, once = PartWriter.finish, []

    def meanwhile(writer: PartWriter) -> None:
        if not once:
            once.append(True)
            write_photos(source / "good", range(10, 13))
            ingest(store, source)
        real(writer)

    monkeypatch.setattr(PartWriter, "finish", meanwhile)
    ingest(store, source)
    rows = read_manifest(store, "parts").rows
    assert len(rows) == 9
    assert rows["uri"].is_unique
    assert to_be_scored(store) == sorted(rows["image_id"])


def test_ingests_at_once_of_a_source_that_grows_give_each_image_one_row(
    store: Store, source: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(manifest, "PART_ROWS", 4)
    monkeypatch.setattr(manifest, "ROW_GROUP", 2)

    def grow_and_ingest(number: int) -> None:
        write_photos(tmp_path / f"{number}", range(3))
        (tmp_path / f"{number}").rename(source / f"{number}")  # whole: a file that is being written has many versions
        ingest(store, source)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(grow_and_ingest, range(6)))
    ingest(store, source)
    rows = read_manifest(store, "parts").rows
    assert (len(rows), to_be_scored(store)) == (24, sorted(rows["image_id"]))
    numbers = [int(part.rpartition("part-")[2][:5]) for part in list_parts(store, "parts")]
    assert numbers == list(range(len(numbers)))


def test_a_place_that_a_dead_ingest_claimed_is_taken_over(store: Store, source: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifest, "CLAIM_SECONDS", 0.3)
    store.create(b"", "collections/parts/manifest/_claims/00000")
    assert ingest(store, source).new == 6
    assert len(list_parts(store, "parts")) == 1


def test_of_those_who_wait_for_a_dead_ingest_one_takes_its_place(store: Store, source: Path, monkeypatch) -> None:
    """Writing takes so long that both have waited enough before the first has written."""
    monkeypatch.setattr(manifest, "CLAIM_SECONDS", 0.5)
    store.create(b"", "collections/parts/manifest/_claims/00000")
    write = Store.write

    def slow(self: Store, data: bytes, *parts: str) -> str:
        time.sleep(0.4 if parts[-1].endswith(".parquet") else 0)
        return write(self, data, *parts)

    monkeypatch.setattr(Store, "write", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: ingest(store, source), range(2)))
    assert [summary.new for summary in found] == [6, 6]  # each found six that nobody had written when it began
    assert len(list_parts(store, "parts")) == 1


def test_an_ingest_that_slept_while_its_place_was_taken_over_lists_nothing_again(
    store: Store, source: Path, monkeypatch
) -> None:
    """The other has seen one image more: both parts would be of other bytes, and their images be scored twice."""
    monkeypatch.setattr(manifest, "CLAIM_SECONDS", 0.5)
    encode, asleep = manifest.to_parquet, []

    def sleep_first(table: pa.Table) -> bytes:
        if not asleep:
            asleep.append(True)
            write_photos(source / "good", range(20, 21))
            assert ingest(store, source).new == 7
        return encode(table)

    monkeypatch.setattr(manifest, "to_parquet", sleep_first)
    ingest(store, source)
    assert len(to_be_scored(store)) == len(set(to_be_scored(store))) == 7


def test_an_ingest_that_could_not_write_gives_its_place_free(store: Store, source: Path, monkeypatch) -> None:
    def full(*arguments: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Store, "write", full)
        with pytest.raises(OSError, match="No space left"):
            ingest(store, source)
    assert store.find("collections/parts/manifest") == []  # no claim, for which the next one would wait
    assert ingest(store, source).new == 6


def test_a_split_that_no_image_has_is_refused_and_deletes_nothing(store: Store, tmp_path: Path) -> None:
    write_photos(tmp_path / "nut/test/good", range(2))
    write_photos(tmp_path / "nut/train/good", range(2, 4))

    def ingest_split(split: str) -> IngestSummary:
        return ingest_source.fn(store.uri, "parts", str(tmp_path / "nut"), "mvtec", False, split)

    assert ingest_split("test").listed == 2
    with pytest.raises(InputError, match="no image is of the split 'tset', but of 'test', 'train'"):
        ingest_split("tset")
    assert len(read_manifest(store, "parts").rows) == 2


def to_be_scored(store: Store) -> list[str]:
    parts = [part for part in list_parts(store, "parts") if "-facts" not in part]
    return sorted(image for part in parts for image in read_part(store, "parts", part)["image_id"].to_pylist())


def test_a_manifest_is_written_in_parts_of_bounded_size(store: Store, source: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifest, "PART_ROWS", 4)
    monkeypatch.setattr(manifest, "ROW_GROUP", 2)
    ingest(store, source)
    assert [len(read_part(store, "parts", part)) for part in list_parts(store, "parts")] == [4, 2]
    assert ingest(store, source, "flat").changed == 6
    assert [len(read_part(store, "parts", part)) for part in list_parts(store, "parts")] == [4, 2, 4, 2]
    (source / "good/000.png").unlink()
    (source / "bent/004.png").unlink()
    assert ingest(store, source, "flat").deleted == 2
    assert len(read_manifest(store, "parts").rows) == 4


def test_the_digest_names_the_snapshot(store: Store, source: Path, tmp_path: Path) -> None:
    summary = ingest(store, source)
    assert read_manifest(store, "parts").digest == summary.digest == digest_of(list_parts(store, "parts"))
    other = Store(str(tmp_path / "other"))
    assert ingest(other, source).digest == summary.digest  # the same objects at the same URIs
    (source / "good/000.png").unlink()
    assert ingest(store, source).digest != summary.digest


def test_what_was_found_when_an_image_was_opened_stays_when_its_label_changes(store: Store, source: Path) -> None:
    ingest(store, source, "flat", probe=True)
    assert ingest(store, source, "folders").changed == 6
    rows = read_manifest(store, "parts").rows
    assert set(zip(rows["status"], rows["width"], rows["mode"], strict=True)) == {("ok", 60, "RGB")}
    photo(50, 30, 20).save(source / "good/000.png")
    ingest(store, source)
    (changed,) = records(read_manifest(store, "parts").rows.query("status == 'listed'"))
    assert (changed["width"], changed["mode"]) == (None, None)


def test_a_later_probe_opens_what_was_only_listed(store: Store, source: Path) -> None:
    (source / "good/note.png").write_text("a note")
    ingest(store, source)
    summary = ingest(store, source, probe=True)
    assert (summary.new, summary.changed, summary.unchanged, summary.unreadable) == (0, 0, 7, 1)
    assert sorted(read_manifest(store, "parts").rows["status"].unique()) == ["ok", "unsupported"]
    assert ingest(store, source, probe=True).digest == summary.digest


def test_a_bucket_is_ingested_as_a_folder_is(memory: str, source: Path) -> None:
    store, bucket = Store(f"{memory}/store"), Store(f"{memory}/images")
    for path in source.rglob("*.png"):
        bucket.write(path.read_bytes(), path.parent.name, path.name)
    assert ingest(store, bucket.uri, probe=True).new == 6
    assert ingest(store, bucket.uri).unchanged == 6
    bucket.write(b"no image any more", "good", "000.png")
    assert ingest(store, bucket.uri, probe=True).unreadable == 1
    rows = read_manifest(store, "parts").rows
    assert (len(rows), rows["last_modified"].notna().all()) == (6, True)


def test_odd_names_are_rows_like_any_other(store: Store, tmp_path: Path) -> None:
    names = ["with space.png", "a+b.png", "100%.png", "größe.png", "two\nlines.png", "a::b.png"]
    (tmp_path / "odd").mkdir()
    for name in names:
        photo().save(tmp_path / "odd" / name)
    ingest(store, tmp_path / "odd", "flat", probe=True)
    rows = read_manifest(store, "parts").rows
    assert sorted(rows["uri"]) == sorted(f"file://{tmp_path}/odd/{name}" for name in names)
    assert set(rows["status"]) == {"ok"}
    assert rows["image_id"].is_unique


def test_probe_reads_headers_and_finds_what_is_unreadable(store: Store, source: Path) -> None:
    (source / "good/note.png").write_text("a note")
    summary = ingest(store, source, probe=True)
    rows = read_manifest(store, "parts").rows.set_index("status")
    assert summary.unreadable == 1
    assert rows.loc["unsupported", "status_detail"]
    assert set(zip(rows.loc["ok", "width"], rows.loc["ok", "height"], rows.loc["ok", "mode"], strict=True)) == {
        (60, 40, "RGB")
    }


def test_probe_reads_the_first_bytes_of_a_large_image_and_all_that_it_needs(store: Store, s3, monkeypatch) -> None:
    """The tags of a compressed TIFF follow its pixels."""
    large, read = photo(height=700, width=900), Counter[str]()
    for name, options in {"a.png": {}, "b.jpg": {"quality": 100}, "c.tif": {"compression": "tiff_lzw"}}.items():
        buffer = io.BytesIO()
        large.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        s3.pipe_file(f"photos/{name}", buffer.getvalue())
    s3.pipe_file("photos/d.png", b"a note " * 20_000)
    real = s3fs.S3FileSystem.cat_file

    def counted(filesystem: s3fs.S3FileSystem, path: str, **options: object) -> bytes:
        data = real(filesystem, path, **options)
        read[path.rpartition("/")[2]] += len(data)
        return data

    monkeypatch.setattr(s3fs.S3FileSystem, "cat_file", counted)
    assert ingest(store, "s3://photos", "flat", probe=True).unreadable == 1
    rows = read_manifest(store, "parts").rows.set_index("uri")
    assert list(rows["status"]) == ["ok", "ok", "ok", "unsupported"]
    assert set(zip(rows["width"][:3], rows["height"][:3], rows["mode"][:3], strict=True)) == {(900, 700, "RGB")}
    assert read == {"a.png": RANGE, "b.jpg": RANGE, "c.tif": read["c.tif"], "d.png": RANGE}
    assert read["c.tif"] <= 2 * RANGE


def test_probe_tells_a_large_object_that_changed_or_vanished(store: Store, tmp_path: Path, monkeypatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "source").mkdir(exist_ok=True)
        photo(height=300, width=300).save(tmp_path / "source" / name)
    real = manifest.fresh_rows

    def later(*arguments):
        rows = list(real(*arguments))
        (tmp_path / "source/a.png").unlink()
        photo(1, 300, 300).save(tmp_path / "source/b.png")
        return rows

    monkeypatch.setattr(manifest, "fresh_rows", later)
    assert ingest(store, tmp_path / "source", "flat", probe=True).unreadable == 2
    assert list(read_manifest(store, "parts").rows["status"]) == ["missing", "changed", "ok"]


def test_a_store_that_fails_while_a_header_is_read_is_not_taken_for_a_bad_image(s3, monkeypatch) -> None:
    s3.pipe_file("photos/a.png", bytes(100_000))

    def fail(*arguments: object, **options: object) -> bytes:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "cat_file", fail)  # of instances that are made from now on
    (entry,) = read_layout("s3://photos", "flat", "parts")[1]
    with pytest.raises(PermissionError, match="Access Denied"):
        manifest.probe_row(manifest.to_row(entry))


def test_a_mask_of_another_size_is_refused_and_nothing_is_written(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "nut"
    for name, size in {"test/hole/1.png": (60, 40), "ground_truth/hole/1_mask.png": (40, 60)}.items():
        (folder / name).parent.mkdir(parents=True)
        Image.new("L", size).save(folder / name)
    with pytest.raises(InputError, match=r"1_mask\.png is 40 x 60 pixels"):
        ingest(store, folder, "mvtec")
    assert list_parts(store, "parts") == ()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_folder_is_refused(store: Store, source: Path, name: str) -> None:
    with pytest.raises(InputError, match="no name for a collection"):
        ingest_source.fn(store.uri, name, str(source), "flat", False)


def test_a_collection_that_was_never_ingested_is_said(store: Store) -> None:
    with pytest.raises(InputError, match="run `anomalyclip ingest` first"):
        read_manifest(store, "parts")
