"""Objects appear whole or not at all, on disk as in a bucket."""

from pathlib import Path

import fsspec
import pytest

from tasks.store import Store


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
