"""The S3 gateway: real daemons of Ceph."""

from pathlib import Path

import pytest
import s3fs

from infra.gateway import S3, gateway
from infra.supervisor import ChildError, listens
from tasks.layouts import read_version, stream_layout
from tests.tasks.test_listing import AWKWARD


def client(s3: S3) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        endpoint_url=s3.endpoint, key=s3.access_key, secret=s3.secret_key, skip_instance_cache=True
    )  # fmt: skip


def test_missing_programs_are_named_by_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChildError, match="apt-get install ceph-mon ceph-osd radosgw ceph-common"), gateway(tmp_path):
        pass


@pytest.mark.stack
def test_in_memory_it_begins_empty_and_by_variables_alone_keys_of_any_name_are_listed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(2):
        with gateway(tmp_path) as s3:
            s3.make_buckets("photos")
            for name, value in s3.environment.items():
                monkeypatch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()  # of the server before
            filesystem = s3fs.S3FileSystem(use_listings_cache=False)
            assert filesystem.ls("photos") == []
            for name in AWKWARD:
                filesystem.call_s3("put_object", Bucket="photos", Key=f"line 4/{name}", Body=b"pixels")
            listed = {
                entry.object.name: entry.object for entry in stream_layout("s3://photos/line 4", "flat", "parts")[1]
            }
            assert sorted(listed) == sorted(AWKWARD)
            for found in listed.values():
                assert read_version({"uri": found.uri, "etag": found.etag}) == b"pixels"
            port = int(s3.endpoint.rpartition(":")[2])
            assert listens(port)()
        assert not listens(port)()


@pytest.mark.stack
def test_on_disk_it_keeps_the_objects_and_forgets_the_keys_of_before(tmp_path: Path):
    with gateway(tmp_path, "bluestore") as before:
        before.make_buckets("photos")
        client(before).pipe_file("photos/a.png", b"pixels")
    with gateway(tmp_path, "bluestore") as s3:
        s3.make_buckets("photos")  # again, without harm
        assert client(s3).cat_file("photos/a.png") == b"pixels"
        assert s3.endpoint == before.endpoint
        with pytest.raises(PermissionError):
            client(before).cat_file("photos/a.png")
        assert before.secret_key not in repr(before)
