"""What each layout reads from names, and what it refuses."""

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from botocore.exceptions import ClientError
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.errors import translate_boto_error

from tasks.errors import InputError
from tasks.images import UnreadableImage
from tasks.layouts import Entry, StoredObject, read_layout, read_version
from tasks.layouts import source as source_module
from tasks.layouts.source import etag_of, reasons, stored_object
from tasks.store import Store
from tests.tasks.conftest import WRITE_ONLY, photo


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo().save(path)


def facts(entries: list[Entry]) -> dict[str, tuple]:
    return {e.object.name: (e.class_name, e.split, e.label, e.defect_type) for e in entries}


def test_flat_takes_every_image_and_no_labels(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "deep/er/b.JPG")
    (tmp_path / "notes.txt").write_text("not listed")
    (tmp_path / ".hidden.png").write_bytes(b"")
    _, entries = read_layout(str(tmp_path), "flat", "parts")
    assert facts(entries) == {"a.png": ("parts", None, None, None), "deep/er/b.JPG": ("parts", None, None, None)}


def test_folders_are_states_and_what_stands_above_is_the_class(tmp_path: Path) -> None:
    write(tmp_path, "good/a.png", "crack/b.png", "nut/OK/c.png", "nut/bent/d.png")
    _, entries = read_layout(str(tmp_path), "folders", "parts")
    assert facts(entries) == {
        "good/a.png": ("parts", None, 0, None),
        "crack/b.png": ("parts", None, 1, "crack"),
        "nut/OK/c.png": ("nut", None, 0, None),
        "nut/bent/d.png": ("nut", None, 1, "bent"),
    }


MVTEC = ("train/good/1.png", "test/good/2.png", "test/hole/3.png", "ground_truth/hole/3_mask.png")


def test_mvtec_pairs_masks_by_name(tmp_path: Path) -> None:
    write(tmp_path, *(f"nut/{name}" for name in MVTEC))
    _, entries = read_layout(str(tmp_path), "mvtec", "parts")
    assert facts(entries) == {
        "nut/train/good/1.png": ("nut", "train", 0, None),
        "nut/test/good/2.png": ("nut", "test", 0, None),
        "nut/test/hole/3.png": ("nut", "test", 1, "hole"),
    }
    assert [e.mask_uri for e in entries if e.mask_uri] == [f"file://{tmp_path}/nut/ground_truth/hole/3_mask.png"]


def test_mvtec_takes_one_class_alone(tmp_path: Path) -> None:
    write(tmp_path / "nut", *MVTEC)
    _, entries = read_layout(str(tmp_path / "nut"), "mvtec", "parts")
    assert {entry.class_name for entry in entries} == {"nut"}


def test_mvtec_takes_masks_named_as_their_images_and_classes_without_masks(tmp_path: Path) -> None:
    write(tmp_path, "nut/test/hole/3.png", "nut/ground_truth/hole/3.png", "bolt/test/bent/3.png")
    _, entries = read_layout(str(tmp_path), "mvtec", "parts")
    masks = {entry.class_name: entry.mask_uri for entry in entries}
    assert masks == {"nut": f"file://{tmp_path}/nut/ground_truth/hole/3.png", "bolt": None}


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    write(tmp_path / "nut", *MVTEC, "test/hole/4.png")
    with pytest.raises(InputError, match=r"'test/hole/4\.png' has no mask"):
        read_layout(str(tmp_path / "nut"), "mvtec", "parts")


def test_an_extra_mask_is_named(tmp_path: Path) -> None:
    write(tmp_path / "nut", *MVTEC, "ground_truth/hole/5_mask.png")
    with pytest.raises(InputError, match=r"'ground_truth/hole/5_mask\.png' belongs to no image"):
        read_layout(str(tmp_path / "nut"), "mvtec", "parts")


def test_an_empty_source_is_not_this_folder() -> None:
    with pytest.raises(InputError, match="the source is empty"):
        read_layout("", "flat", "parts")


def test_awkward_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ["with space.png", "a+b.png", "100%.png", "größe.png", "two\nlines.png", "#1.png", "q?.png", "a::b.png"]
    write(tmp_path, *names)
    _, entries = read_layout(str(tmp_path), "flat", "parts")
    assert sorted(entry.object.name for entry in entries) == sorted(names)
    for entry in entries:
        assert read(entry.object)[:4] == b"\x89PNG"


def read(found: StoredObject) -> bytes:
    return read_version({"uri": found.uri, "etag": found.etag, "size": found.size})


def test_a_link_is_its_file_and_a_broken_one_is_found_missing(tmp_path: Path) -> None:
    write(tmp_path, "outside/a.png", "source/b.png")
    os.utime(tmp_path / "outside/a.png", (1_000_000_000, 1_000_000_000))  # long before the link
    (tmp_path / "source/link.png").symlink_to("../outside/a.png")
    (tmp_path / "source/broken.png").symlink_to("nowhere")
    (tmp_path / "source/folder.png").symlink_to("../outside")
    _, entries = read_layout(str(tmp_path / "source"), "flat", "parts")
    found = {entry.object.name: entry.object for entry in entries}
    assert sorted(found) == ["b.png", "broken.png", "link.png"]
    assert read(found["link.png"]) == (tmp_path / "outside/a.png").read_bytes()
    with pytest.raises(UnreadableImage, match="missing"):
        read(found["broken.png"])


def test_a_name_that_is_no_utf8_is_listed_with_escapes_and_found_missing(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write_odd_name(tmp_path, b"\xff.png")
    _, entries = read_layout(str(tmp_path), "flat", "parts")
    (odd,) = (entry.object for entry in entries if entry.object.name != "a.png")
    assert odd.uri.encode("utf-8") == f"file://{tmp_path}/\\udcff.png".encode()
    with pytest.raises(UnreadableImage, match="missing"):
        read(odd)


def write_odd_name(folder: Path, name: bytes) -> None:
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"png")
    except OSError:
        pytest.skip("the file system takes no name that is not UTF-8")


def test_links_that_lead_nowhere_are_found_missing(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "through.png").symlink_to("a.png/b.png")
    check_odd_ones(tmp_path, 2)


def test_a_name_that_is_too_long_with_its_escapes_is_found_missing(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    write_odd_name(tmp_path, b"\xff" * 60 + b".png")
    check_odd_ones(tmp_path, 1)


def check_odd_ones(folder: Path, count: int) -> None:
    _, entries = read_layout(str(folder), "flat", "parts")
    odd = [entry.object for entry in entries if entry.object.name != "a.png"]
    assert len(odd) == count
    for found in odd:
        with pytest.raises(UnreadableImage, match="missing: the name leads to no file"):
            read(found)


def test_folders_that_are_no_part_of_a_source_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "source/a.png", "source/lost+found/#12.png", "elsewhere/b.png")
    (tmp_path / "source/linked").symlink_to("../elsewhere")
    _, entries = read_layout(str(tmp_path / "source"), "flat", "parts")
    assert [entry.object.name for entry in entries] == ["a.png"]
    assert f"{tmp_path}/source/linked is a link to a folder" in caplog.text


def test_what_was_listed_is_told_from_what_is_there_now(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", "c.png")
    _, entries = read_layout(str(tmp_path), "flat", "parts")
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_bytes(b"another")
    os.utime(tmp_path / "c.png", (1_000_000_000, 1_000_000_000))
    for entry, kind in zip(entries, ("missing", "changed", "changed"), strict=True):
        with pytest.raises(UnreadableImage, match=kind):
            read(entry.object)


def test_an_object_of_a_bucket_that_was_replaced_by_one_of_its_size_is_told_from_it(memory: str) -> None:
    bucket = Store(memory)
    bucket.write(b"first", "a.png")
    (entry,) = read_layout(memory, "flat", "parts")[1]
    assert read(entry.object) == b"first"
    bucket.write(b"other", "a.png")
    with pytest.raises(UnreadableImage, match="changed"):
        read(entry.object)


def test_on_s3_an_etag_names_the_version_whether_it_is_an_md5_or_not(s3: s3fs.S3FileSystem) -> None:
    s3.pipe_file("photos/md5.png", b"first")
    upload = s3.call_s3("create_multipart_upload", Bucket="photos", Key="parts.png")["UploadId"]
    target = {"Bucket": "photos", "Key": "parts.png", "UploadId": upload}
    part = s3.call_s3("upload_part", **target, PartNumber=1, Body=b"first")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.call_s3("complete_multipart_upload", **target, MultipartUpload=parts)
    listed = {entry.object.name: entry.object for entry in read_layout("s3://photos", "flat", "parts")[1]}
    assert listed["parts.png"].etag.endswith("-1")
    assert {read(found) for found in listed.values()} == {b"first"}
    for name in listed:
        s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"photos/{name}", b"other")  # by somebody else
    for found in listed.values():
        with pytest.raises(UnreadableImage, match="changed"):
            read(found)
    s3fs.S3FileSystem(skip_instance_cache=True).rm_file("photos/md5.png")
    with pytest.raises(UnreadableImage, match="missing"):
        read(listed["md5.png"])


@pytest.mark.skipif(not WRITE_ONLY.exists(), reason="the kernel has no such file")
def test_a_local_file_that_may_not_be_read_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(WRITE_ONLY)
    _, entries = read_layout(str(tmp_path), "flat", "parts")
    with pytest.raises(UnreadableImage, match="forbidden"):
        read(entries[0].object)


def test_a_time_that_no_calendar_has_is_none(tmp_path: Path) -> None:
    assert stored_object(LocalFileSystem(), "a.png", "file:///", {"mtime": 3e11, "size": 1}).last_modified is None


def test_a_listing_that_breaks_off_is_not_a_shorter_source(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing from it would count as deleted."""
    folder = Store("s3://photos/line")
    for name in ("a.png", "b.png"):
        folder.write(b"x", name)
    whole = source_module.list_objects

    def first_page(filesystem: Any, root: str) -> Any:
        yield next(iter(whole(filesystem, root)))
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(source_module, "list_objects", first_page)
    with pytest.raises(FileNotFoundError):
        read_layout(folder.uri, "flat", "parts")


@pytest.mark.parametrize(
    ("error", "raised"), [(PermissionError(13, "no"), InputError), (OSError(5, "Input/output error"), OSError)]
)
def test_a_file_that_cannot_be_looked_at_ends_the_listing(
    error: OSError, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, it would be taken for deleted."""
    write(tmp_path, "a.png", "deep/b.png")
    info = LocalFileSystem.info

    def failing(self: LocalFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("b.png"):
            raise error
        return info(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "info", failing)
    with pytest.raises(raised):
        read_layout(str(tmp_path), "flat", "parts")


@pytest.mark.parametrize("second", ["b.png", "deep/b.png"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_source_that_goes_away_while_it_is_listed_is_not_a_shorter_one(
    second: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "line", "a.png", second)
    info = LocalFileSystem.info

    def unmount(self: LocalFileSystem, path: str, **options: Any) -> Any:
        found = info(self, path, **options)
        if path.endswith("a.png"):
            (tmp_path / "line").rename(tmp_path / "away")
            if left != "nothing":
                (tmp_path / "line").mkdir()
        return found

    monkeypatch.setattr(LocalFileSystem, "info", unmount)
    with pytest.raises(InputError, match="went away while it was listed"):
        read_layout(str(tmp_path / "line"), "flat", "parts")


class Hosted(MemoryFileSystem):
    """As FTP in fsspec: the addresses of its objects lack the host that it is asked with."""

    protocol = "hosted"

    def __init__(self, host: str) -> None:
        super().__init__()

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": host} if (host := path.removeprefix("hosted://").partition("/")[0]) else {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hosted://").partition("/")[2]


def test_a_store_whose_addresses_do_not_lead_back_to_it_is_no_source() -> None:
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    with pytest.raises(InputError, match="'hosted://camera/line' cannot be a source"):
        read_layout("hosted://camera/line", "flat", "parts")


def test_a_store_that_says_neither_etag_nor_size_is_no_source() -> None:
    with pytest.raises(InputError, match="has neither an ETag nor a size"):
        etag_of(fsspec.filesystem("memory"), {"name": "https://host/a.png", "size": None, "type": "file"})


@pytest.mark.parametrize(("code", "kind"), [("InvalidObjectState", "unreadable"), ("AccessDenied", "forbidden")])
def test_an_archived_object_is_unreadable_and_a_refused_one_forbidden(code: str, kind: str) -> None:
    """No server here archives: the error is the one that s3fs makes of S3's answer."""
    refused = translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject"))
    with pytest.raises(UnreadableImage) as found, reasons(fsspec.filesystem("memory")):
        raise refused
    assert found.value.kind == kind


def test_a_bucket_is_read_as_a_folder_is(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/line/good/a.png", b"png")
    memory.pipe("/bucket/line/bent/b.png", b"png")
    try:
        source, entries = read_layout("memory://bucket/line", "folders", "parts")
        assert source == "memory:///bucket/line"
        assert {(e.object.uri, e.label) for e in entries} == {
            ("memory:///bucket/line/good/a.png", 0),
            ("memory:///bucket/line/bent/b.png", 1),
        }
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("source", "layout", "message"),
    [
        ("nowhere", "flat", "does not exist"),
        (".", "flat", "holds no image"),
        (".", "magic", "no layout 'magic'"),
        (".", "labels", "must hold one"),
        ("memory://nowhere", "flat", "does not exist"),
        ("nonsense://x", "flat", "cannot be opened"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch, source, layout, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        read_layout(source, layout, "parts")


def test_a_file_is_no_source(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    with pytest.raises(InputError, match="is a file: name its folder"):
        read_layout(str(tmp_path / "a.png"), "flat", "parts")
