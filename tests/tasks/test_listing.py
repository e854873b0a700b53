"""Listings stream: page by page, in one order, everything once, whatever its name."""

from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import fsspec.config
import pytest
import s3fs
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from tasks.images import UnreadableImage
from tasks.layouts import listing, read_version, stream_layout
from tasks.layouts.listing import list_objects
from tasks.store import S3_OPTIONS, open_filesystem

AWKWARD = [
    "two words.png", "a+b.png", "100%.png", "a%20b?.png", "größe-写真.png", "new\nline.png", "two//slashes.png", "#1.png",
    "q?x=1&y=2.png", "a::b.png", "~.png", "back\\slash.png", "quote'\"<&>.png", "tab\t.png",
    "v?versionId=1.png",
]  # fmt: skip


def fill(names: Iterable[str], data: bytes = b"png") -> None:
    """Objects of the bucket `photos`, without a request each."""
    bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for name in names:
        bucket.put_object("photos", name, data)


def names(uri: str) -> list[str]:
    return [name for name, _ in list_objects(*open_filesystem(uri))]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 10)


def test_a_bucket_is_listed_page_by_page_and_prefix_by_prefix(s3: s3fs.S3FileSystem, small_pages: None) -> None:
    keys = [f"line/{folder}/{number:04d}.png" for folder in ("a", "b", "c-d") for number in range(35)]
    fill([*keys, "line/top.png", "line/b.png", "line/.hidden/x.png", "line/c-d/.x.png", "line/empty/", "other/x.png"])
    listed = names("s3://photos/line")
    assert listed == names("s3://photos/line")
    assert sorted(f"line/{name}" for name in listed) == sorted([*keys, "line/top.png", "line/b.png"])
    assert names("s3://photos/line/b") == [f"{number:04d}.png" for number in range(35)]


def test_prefixes_are_listed_side_by_side_a_page_of_each_in_turn(s3: s3fs.S3FileSystem, small_pages: None) -> None:
    fill(f"2026/11/{folder}/{number:04d}.png" for folder in "abc" for number in range(15))
    assert [name[8] for name in names("s3://photos")[::5]] == ["a", "a", "b", "b", "c", "c", "a", "b", "c"]


def test_a_listing_goes_on_past_a_thousand_keys(s3: s3fs.S3FileSystem) -> None:
    fill(f"{number:04d}.png" for number in range(1001))
    assert names("s3://photos") == [f"{number:04d}.png" for number in range(1001)]


def test_a_bucket_of_many_small_folders_does_not_cost_a_request_each(s3: s3fs.S3FileSystem, monkeypatch) -> None:
    fill(f"{number:04d}/a.png" for number in range(400))
    asked: list[str] = []
    real = s3fs.S3FileSystem.call_s3
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", lambda self, *a, **k: asked.append(a[0]) or real(self, *a, **k))
    assert names("s3://photos") == [f"{number:04d}/a.png" for number in range(400)]
    assert len(asked) <= 1 + listing.RANGES


def test_a_flat_bucket_streams_and_nothing_of_it_is_kept(s3: s3fs.S3FileSystem, small_pages: None) -> None:
    fill(f"{number:04d}.png" for number in range(35))
    filesystem, root = open_filesystem("s3://photos")
    stream = list_objects(filesystem, root)
    assert next(stream)[0] == "0000.png"
    fill(["9999.png"])  # on a page that is not asked for yet
    assert [name for name, _ in stream][-1] == "9999.png"
    assert not filesystem.dircache


@pytest.mark.parametrize("place", ["bucket", "memory", "folder"])
def test_every_store_gives_what_fsspec_finds(place: str, s3, memory: str, tmp_path: Path) -> None:
    uri = {"bucket": "s3://photos/x", "memory": f"{memory}/x", "folder": f"file://{tmp_path}/x"}[place]
    filesystem, root = open_filesystem(uri)
    for name in ("a/b/c.png", "a.png", "a-b/c.png", "B.png", "ä/é.png", "a/b.png", "z/y/x/w.png", ".h/a.png"):
        fsspec.open(f"{uri}/{name}", "wb", auto_mkdir=True).open().close()
    expected = sorted(path[len(root) + 1 :] for path in filesystem.find(root))
    assert [name for name, _ in list_objects(filesystem, root)] == [n for n in expected if not n.startswith(".")]


def test_a_key_of_any_name_is_listed_and_read(s3: s3fs.S3FileSystem) -> None:
    fill((f"line 4/{name}" for name in AWKWARD), b"bytes")
    _, entries = stream_layout("s3://photos/line 4", "flat", "parts")
    listed = {entry.object.name: entry.object for entry in entries}
    assert sorted(listed) == sorted(AWKWARD)
    listed.pop("new\nline.png")  # moto answers 404 to every request with its name
    for name, found in listed.items():
        assert found.uri == f"s3://photos/line 4/{name}"
        assert read_version({"uri": found.uri, "etag": found.etag}) == b"bytes", name


def test_of_a_versioned_bucket_the_current_versions_are_listed(s3: s3fs.S3FileSystem) -> None:
    s3.call_s3("put_bucket_versioning", Bucket="photos", VersioningConfiguration={"Status": "Enabled"})
    s3.pipe_file("photos/a.png", b"first")
    before = next(stream_layout("s3://photos", "flat", "parts")[1]).object
    s3.pipe_file("photos/a.png", b"second")
    s3.pipe_file("photos/gone.png", b"first")
    s3.call_s3("delete_object", Bucket="photos", Key="gone.png")
    (entry,) = stream_layout("s3://photos", "flat", "parts")[1]
    assert read_version({"uri": entry.object.uri, "etag": entry.object.etag}) == b"second"
    with pytest.raises(UnreadableImage, match="changed"):
        read_version({"uri": before.uri, "etag": before.etag})


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Variables of fsspec, as they are read when it is imported."""

    def configure(**variables: str) -> None:
        conf: dict[str, dict[str, object]] = {}
        fsspec.config.set_conf_env(conf, variables)
        monkeypatch.setitem(fsspec.config.conf, "s3", conf["s3"])

    return configure


def test_an_anonymous_bucket_needs_no_credentials(s3: s3fs.S3FileSystem, options, monkeypatch, tmp_path: Path) -> None:
    s3.call_s3("put_object", Bucket="photos", Key="a.png", Body=b"png", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Exception, match="credentials"):
        names("s3://photos")
    options(FSSPEC_S3_ANON="true")
    (entry,) = stream_layout("s3://photos", "flat", "parts")[1]
    assert read_version({"uri": entry.object.uri, "etag": entry.object.etag}) == b"png"


def test_whoever_asks_pays_where_that_is_configured(s3: s3fs.S3FileSystem, options) -> None:
    fill(["a.png"])
    options(FSSPEC_S3_REQUESTER_PAYS="true")
    filesystem, _ = open_filesystem("s3://photos")
    filesystem.connect()
    payers: list[object] = []
    events = filesystem.s3.meta.events
    events.register("before-send.s3", lambda request, **_: payers.append(request.headers.get("x-amz-request-payer")))
    (entry,) = stream_layout("s3://photos", "flat", "parts")[1]
    read_version({"uri": entry.object.uri, "etag": entry.object.etag})
    assert len(payers) == 3  # two listings and the object
    assert set(payers) == {b"requester"}


def test_options_of_the_user_replace_ours_one_by_one(s3: s3fs.S3FileSystem, options) -> None:
    options(FSSPEC_S3_CONFIG_KWARGS='{"user_agent": "of the user"}', FSSPEC_S3_MAX_CONCURRENCY="2")
    filesystem, _ = open_filesystem("s3://photos")
    filesystem.connect()
    config = filesystem.s3.meta.config
    assert config.user_agent.startswith("of the user")
    assert filesystem.max_concurrency == 2
    assert config.max_pool_connections == S3_OPTIONS["config_kwargs"]["max_pool_connections"]
