"""Memory of an ingest does not grow with the collection, but for what it has to know of each object."""

import subprocess
import sys
from pathlib import Path

INGEST_TWICE = """
import sys
from tasks import manifest

manifest.PART_ROWS = 2048  # what is held of a part is held of both collections
source, store, expected = sys.argv[1:]
for new in (int(expected), 0):
    summary = manifest.ingest_source.fn(store, "parts", source, "flat", False)
    assert (summary.listed, summary.new) == (int(expected), new), summary
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


def peak_memory(folder: Path, objects: int) -> int:
    """Bytes of a process that ingests so many files, and ingests them again."""
    source = folder / f"source-{objects}"
    source.mkdir()
    for number in range(objects):
        (source / f"{number:06d}.png").touch()
    command = [sys.executable, "-c", INGEST_TWICE, str(source), str(folder / f"store-{objects}"), str(objects)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout)


def test_ten_times_the_objects_take_a_few_bytes_an_object_more(tmp_path: Path) -> None:
    """A listing in memory takes over a thousand; the names of a local folder are a hundred of the bytes that are allowed."""
    small, large = peak_memory(tmp_path, 5_000), peak_memory(tmp_path, 50_000)
    assert (large - small) / 45_000 < 700
    assert large < 400e6


READ_KNOWN = """
import sys
import pyarrow as pa
from tasks import known
from tasks.store import Store
from tasks.tables import MANIFEST, to_parquet

store, rows, part_rows = Store(sys.argv[1]), int(sys.argv[2]), 50_000
for start in range(0, rows, part_rows):
    numbers = range(start, start + part_rows)
    columns = {
        "image_id": [f"{2**60 + n * 0x9E3779B97F4A7C15 % 2**60:016x}" for n in numbers],
        "uri": [f"s3://bucket/{n}.png" for n in numbers],
        "status": ["listed"] * part_rows,
    }
    columns |= {f.name: pa.nulls(part_rows, f.type) for f in MANIFEST if f.name not in columns}
    store.write(to_parquet(pa.table(columns).select(MANIFEST.names).cast(MANIFEST)), f"part-{start:09d}.parquet")
known.SLICE = 1 << 15  # both are sorted in many pieces
before = known.read_known(store, (), tuple(store.find(suffix=".parquet")))
assert len(before.uris) == len(before.images) == rows
assert len(list(before.unlisted("s3://bucket/99999"))) == 11
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


def test_what_is_known_takes_no_memory_however_much_it_is(tmp_path: Path) -> None:
    peaks = []
    for rows in (1_000_000, 2_000_000):
        command = [sys.executable, "-c", READ_KNOWN, str(tmp_path / str(rows)), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
        assert done.returncode == 0, done.stderr
        peaks.append(1024 * int(done.stdout))
    assert peaks[1] - peaks[0] < 20 * 1_000_000
    assert peaks[1] < 400e6
