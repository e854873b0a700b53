"""Objects appear whole or not at all, on disk as in a bucket."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs

from tasks.errors import InputError
from tasks.store import Store, default_store, open_filesystem, read_uri


@pytest.fixture(params=["disk", "bucket"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "disk":
        yield Store(str(tmp_path / "store"))
    else:
        yield Store("memory://bucket/store")
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_what_is_written_is_found_and_read(any_store: Store) -> None:
    uri = any_store.write(b"one", "a", "b.bin")
    any_store.write(b"two", "a", "deep", "c.bin")
    any_store.write(b"three", "a", "b.txt")
    assert any_store.read("a", "b.bin") == b"one"
    assert any_store.find("a", suffix=".bin") == ["b.bin", "deep/c.bin"]
    assert fsspec.open(uri).open().read() == b"one"
    assert any_store.exists("a", "b.bin")
    assert not any_store.exists("a", "c.bin")
    assert any_store.find("nowhere") == []


def test_an_object_is_replaced_whole(any_store: Store) -> None:
    any_store.write(b"before", "a.bin")
    any_store.write(b"after", "a.bin")
    assert any_store.read("a.bin") == b"after"


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_of_many_that_create_an_object_one_does(place: str, s3, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store") if place == "disk" else "s3://photos/store")
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store.create(b"%d" % number, "a", "claim"), range(8)))
    assert created.count(True) == 1
    assert store.read("a", "claim") == b"%d" % created.index(True)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_store_that_cannot_create_is_asked_before_it_is_written_to(
    place: str, s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store") if place == "disk" else "s3://photos/store")
    real = store.fs.pipe_file if place == "s3" else None

    def refuse(*arguments: Any, **options: Any) -> None:
        if real and options.get("mode") != "create":
            real(*arguments, **options)
        else:
            raise OSError(errno.ENOSYS if real else errno.EPERM, "not implemented")

    monkeypatch.setattr(*((store.fs, "pipe_file") if real else ("tasks.store.os.link",)), refuse)
    assert store.create(b"one", "claim")
    assert not store.create(b"two", "claim")
    assert store.create(b"", "empty")
    assert not store.create(b"", "empty")
    assert (store.read("claim"), store.find()) == (b"one", ["claim", "empty"])


def test_a_refused_write_of_what_is_there_is_no_failure(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    """As servers say it whose answer names no condition."""
    store = Store("s3://photos/store")
    store.write(b"", "claim")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EINVAL, "PreconditionFailed")

    monkeypatch.setattr(store.fs, "pipe_file", refuse)
    assert not store.create(b"", "claim")
    with pytest.raises(OSError, match="PreconditionFailed"):
        store.create(b"", "another")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write(b"before", "a.bin")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.store.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(b"after", "a.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert store.read("a.bin") == b"before"


@pytest.mark.parametrize(
    "name",
    ["a b.png", "a+b.png", "100%.png", "%20.png", "Prüfling-写真.png", "new\nline.png", "a::b.png", "#1?.png", "~.png"],
)
def test_a_uri_leads_back_to_its_object_whatever_its_name(store: Store, name: str) -> None:
    uri = store.write(b"bytes", "folder", name)
    assert uri == f"file://{store.local_root}/folder/{name}"
    assert read_uri(uri) == b"bytes"
    assert store.find("folder") == [name]


def test_a_reader_never_sees_half_an_object(store: Store) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    store.write(contents[0], "object")
    writers = [threading.Thread(target=store.write, args=(data, "object")) for data in contents * 3]
    for writer in writers:
        writer.start()
    seen = [store.read("object") for _ in range(50)]
    for writer in writers:
        writer.join()
    assert all(data in contents for data in seen)
    assert store.find() == ["object"]


def test_a_local_store_knows_its_folder_and_a_remote_one_has_none(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).local_root == tmp_path
    assert Store(f"file://{tmp_path}/").local_root == tmp_path
    assert Store("memory://bucket").local_root is None


def test_a_relative_store_gives_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("./store").uri_of("a") == f"file://{tmp_path}/store/a"


def test_the_default_store_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_store() == "./store"
    monkeypatch.setenv("ANOMALYCLIP_STORE", "s3://bucket/store")
    assert default_store() == "s3://bucket/store"


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hush@127.0.0.1/photos",
        "https://hush@127.0.0.1",
        "s3://key:hush@photos/line@4",
        "sftp://user:hu@sh@host/",
        "simplecache::https://user:hush@127.0.0.1/",
        "magic://user:hush@host/a",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InputError, match="must not hold a user or a password") as refused:
        Store(uri).exists("a")
    assert not [word for word in ("hush", "sh@", "user:hu", "127.0.0.1") if word in str(refused.value)]


@pytest.mark.parametrize("key", ["a@b.png", "@/a.png", "user:word@host/a.png", "x/c://d@e/a.png"])
def test_a_key_may_have_what_looks_like_a_user(key: str, s3, store: Store) -> None:
    for kept in (store, Store("s3://photos/line@4")):
        assert read_uri(kept.write(b"bytes", key)) == b"bytes"


def test_a_uri_that_cannot_be_opened_is_an_input_error() -> None:
    with pytest.raises(InputError, match="'magic://bucket/a' cannot be opened"):
        open_filesystem("magic://bucket/a")


def test_on_s3_times_are_those_of_the_server(s3: s3fs.S3FileSystem) -> None:
    s3.pipe_file("photos/a.png", b"png")
    filesystem, path = open_filesystem("s3://photos/a.png")
    before = datetime.now(UTC) - timedelta(minutes=1)
    (listed,) = filesystem.call_s3("list_objects_v2", Bucket="photos")["Contents"]
    asked = filesystem.info(path, refresh=True)["LastModified"]
    assert before < asked == listed["LastModified"].replace(microsecond=0) < datetime.now(UTC) + timedelta(minutes=1)


@pytest.mark.parametrize("spelling", ["a/../b", "a/./../b", "//a//../b/", "./b/."])
def test_a_local_path_has_one_spelling(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = f"/{tmp_path}{spelling}" if spelling.startswith("//") else spelling
    assert Store(given).uri_of("x") == (tmp_path / "b/x").as_uri()
