"""A real S3 server on this machine: Ceph's RADOS Gateway with one monitor and one OSD, open to 127.0.0.1 alone.

Everything lies in one folder. In memory (`memstore`) it begins empty; on disk (`bluestore`) a second start goes on with
what the first one left. It is no cluster: one copy of each object, no manager.
"""

import json
import os
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infra.supervisor import LOOPBACK, ChildError, Supervisor, answers, free_port, listens

PACKAGES = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw", "ceph": "ceph-common"}  # by program
REGION = "us-east-1"
USER = "anomalyclip"
GIB = 2**30

Objects = Literal["memstore", "bluestore"]

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor_port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth allow insecure global id reclaim = false
admin socket =
run dir = {folder}
pid file =
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
log file = {folder}/$name.log
mon data avail crit = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = {objects}
osd memory target = 939524096
memstore device bytes = {capacity}
bluestore block size = {capacity}
[client.rgw]
rgw frontends = beast tcp_nodelay=1 endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
rgw override bucket index max shards = 1
rgw thread pool size = 64
"""
CAPABILITIES = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *"),
    "client.rgw": ("mon", "allow rwx", "osd", "allow rwx"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
}


@dataclass(frozen=True)
class S3:
    """A running gateway and the keys of its only user."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The AWS variables by which every client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def make_buckets(self, *names: str) -> None:
        """Those that are there already stay as they are. (s3fs's mkdir fails here: it names the region as constraint.)"""
        import botocore.session

        client = botocore.session.get_session().create_client(
            "s3", region_name=REGION, endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key,
        )  # fmt: skip
        for name in names:
            client.create_bucket(Bucket=name)
        client.close()


@contextmanager
def gateway(folder: Path, objects: Objects = "memstore") -> Iterator[S3]:
    """A gateway of its own in an empty folder, with random keys, until the end of the block."""
    with Supervisor(folder / "logs") as supervisor:
        yield start_gateway(supervisor, folder, objects)


def start_gateway(
    supervisor: Supervisor,
    folder: Path,
    objects: Objects = "memstore",
    keys: tuple[str, str] | None = None,
    port: int | None = None,
    capacity: int = 8 * GIB,
) -> S3:
    """Monitor, OSD and gateway as children of the supervisor, up within some ten seconds.

    keys: access and secret key; random where None. port and capacity (bytes) count at the first start in a folder.
    Raises ChildError where a program is missing, with the packages to install.
    """
    if missing := [package for program, package in PACKAGES.items() if shutil.which(program) is None]:
        raise ChildError(f"Debian's {', '.join(missing)} are not installed: apt-get install {' '.join(missing)}")
    folder = folder.resolve()
    configuration = folder / "ceph.conf"
    new = not configuration.exists() or objects == "memstore"
    if new:
        for part in ("mon", "osd"):
            shutil.rmtree(folder / part, ignore_errors=True)
        create_monitor(folder, objects, port or free_port(), capacity)
    monitor_port, port = read_ports(configuration)
    run_monitor = ["ceph-mon", "-c", str(configuration), "-i", "a", "-f"]
    supervisor.start("s3-monitor", run_monitor, listens(monitor_port), 60)
    if new:
        create_disk(configuration)
    supervisor.start("s3-disk", ["ceph-osd", "-c", str(configuration), "-i", "0", "-f"], disk_is_up(configuration), 60)
    access, secret = keys or (secrets.token_hex(10).upper(), secrets.token_urlsafe(30))
    set_keys(configuration, access, secret)
    endpoint = f"http://{LOOPBACK}:{port}"
    run_gateway = ["radosgw", "-c", str(configuration), "-n", "client.rgw", "-f"]
    supervisor.start("s3-gateway", run_gateway, answers(endpoint), 90)
    return S3(endpoint, access, secret)


def create_monitor(folder: Path, objects: Objects, port: int, capacity: int) -> None:
    """Configuration, keys between the daemons, and the monitor's database."""
    fsid, monitor_port, keyring = str(uuid.uuid4()), free_port(), folder / "keyring"
    for part in ("mon", "osd"):
        (folder / part).mkdir(parents=True)
    keyring.unlink(missing_ok=True)
    for name, granted in CAPABILITIES.items():
        create = [] if keyring.exists() else ["--create-keyring"]
        pairs = zip(granted[::2], granted[1::2], strict=True)
        grants = [word for service, right in pairs for word in ("--cap", service, right)]
        ceph("ceph-authtool", str(keyring), *create, "--gen-key", "-n", name, *grants)
    address = f"[v2:{LOOPBACK}:{monitor_port}/0]"
    ceph("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"))
    values = {"fsid": fsid, "monitor_port": monitor_port, "folder": folder, "objects": objects, "port": port}
    configuration = folder / "ceph.conf"
    configuration.write_text(CONFIGURATION.format(**values, capacity=capacity))
    known = ("--monmap", str(folder / "monmap"), "--keyring", str(keyring))
    ceph("ceph-mon", "-c", str(configuration), "-i", "a", "--mkfs", *known)


def read_ports(configuration: Path) -> tuple[int, int]:
    """Of the monitor, whose address its database holds as well, and of the gateway."""
    lines = configuration.read_text().splitlines()
    monitor, gateway_line = (next(x for x in lines if x.startswith(start)) for start in ("mon host", "rgw frontends"))
    return int(monitor.rpartition(":")[2].partition("/")[0]), int(gateway_line.rpartition(":")[2])


def create_disk(configuration: Path) -> None:
    disk = str(uuid.uuid4())
    ceph("ceph", "-c", str(configuration), "osd", "new", disk)
    ceph("ceph-osd", "-c", str(configuration), "-i", "0", "--mkfs", "--osd-uuid", disk)


def disk_is_up(configuration: Path) -> Callable[[], bool]:
    return lambda: "1 up" in ceph("ceph", "-c", str(configuration), "osd", "stat")


def set_keys(configuration: Path, access: str, secret: str) -> None:
    """The only ones of the user, who is created where there is none. By CEPH_ARGS: a command line is for all to see."""
    admin, uid = ("radosgw-admin", "-c", str(configuration)), f"--uid={USER}"
    known = USER in ceph(*admin, "user", "list")
    command = ("key", "create", "--key-type=s3") if known else ("user", "create", f"--display-name={USER}")
    user = json.loads(ceph(*admin, *command, uid, CEPH_ARGS=f"--access-key={access} --secret={secret}"))
    for key in user["keys"]:
        if key["access_key"] != access:
            ceph(*admin, "key", "rm", uid, f"--access-key={key['access_key']}")


def ceph(*command: str, **variables: str) -> str:
    """What a program of Ceph prints; ChildError with its last line where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CEPH"))}
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=120)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ChildError(f"{command[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout
