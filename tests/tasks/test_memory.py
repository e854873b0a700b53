"""Memory of an ingest does not grow with the collection, but for what it has to know of each object."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from tasks.manifest import manifest_folder
from tasks.store import Store
from tasks.tables import MANIFEST, to_parquet

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
    small, large = peak_memory(tmp_path, 10_000), peak_memory(tmp_path, 100_000)
    assert (large - small) / 90_000 < 700  # 130 to 170, and up to 35 MB in all that allocators hold back
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


MAKE_NIGHT = """
import sys
import pyarrow as pa
from tasks.manifest import manifest_folder
from tasks.shards import model_folder
from tasks.store import Store
from tasks.tables import MANIFEST, SCORES, to_parquet

store, rows, part_rows = Store(sys.argv[1]), int(sys.argv[2]), 50_000
for part, start in enumerate(range(0, rows, part_rows)):
    numbers = range(start, start + part_rows)
    ids = [f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in numbers]
    uris = [f"s3://bucket/line-4/2026-11-26/camera-2/{n:012d}.png" for n in numbers]
    region = {"x": 1, "y": 2, "w": 3, "h": 4, "area": 12, "peak": 0.5}
    both = {"image_id": ids, "uri": uris, "class_name": ["line-4"] * part_rows}
    more = {"score": [0.5] * part_rows, "decision": ["normal"] * part_rows, "regions": [[region] * 4] * part_rows}
    name, listed = f"part-{part:05d}-a", both | {"status": ["listed"] * part_rows}
    for schema, columns, *place in (
        (MANIFEST, listed, *manifest_folder("parts"), f"dt=2026-11-26/{name}.parquet"),
        (SCORES, both | more, *model_folder("parts", "m.v1"), f"{name}-{part_rows}-00000.parquet"),
    ):
        columns |= {f.name: pa.nulls(part_rows, f.type) for f in schema if f.name not in columns}
        store.write(to_parquet(pa.table(columns).select(schema.names).cast(schema)), *place)
"""

TELL_NIGHT = """
import sys
from tasks.registry import ModelVersion
from tasks.scored import read_outline, read_rest
from tasks.store import Store

store, rows, model = Store(sys.argv[1]), int(sys.argv[2]), ModelVersion("models:/m/1", "m", "1", "0" * 64)
outline = read_outline(store, "parts", model)
assert len(outline) == rows
assert len(read_rest(store, "parts", model, outline[::50_000])) == rows / 50_000
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


def test_a_night_takes_little_of_each_image_that_it_tells_of(tmp_path: Path) -> None:
    """All columns of a row with four regions take over two kilobytes."""
    peaks = []
    for rows in (200_000, 600_000):
        for script in (MAKE_NIGHT, TELL_NIGHT):
            command = [sys.executable, "-c", script, str(tmp_path / str(rows)), str(rows)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
            assert done.returncode == 0, done.stderr
        peaks.append(1024 * int(done.stdout))
    assert (peaks[1] - peaks[0]) / 400_000 < 800


READ_LABELLED = """
import sys
from tasks.features import training_material
from tasks.store import Store

assert len(training_material(Store(sys.argv[1]), ["parts"]).rows) == 100
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


def write_manifest(store: Store, rows: int) -> None:
    """A hundred of the rows have a label."""
    numbers = range(rows)
    columns = {
        "image_id": pa.array(f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in numbers),
        "uri": pa.array(f"s3://bucket/line-4/2026-11-26/camera-2/{n:012d}.png" for n in numbers),
        "class_name": pa.array("line-4" for _ in numbers),
        "status": pa.array("listed" for _ in numbers),
        "label": pa.array(n % 2 if n < 100 else None for n in numbers),
    }
    columns |= {field.name: pa.nulls(rows, field.type) for field in MANIFEST if field.name not in columns}
    table = pa.table(columns).select(MANIFEST.names).cast(MANIFEST)
    for part, start in enumerate(range(0, rows, 50_000)):
        data = to_parquet(table.slice(start, 50_000))
        store.write(data, *manifest_folder("parts"), f"dt=2026-11-26/part-{part:05d}-a.parquet")


def test_images_without_a_label_take_no_memory_of_training(tmp_path: Path) -> None:
    """All columns of a row take 650 bytes."""
    peaks = []
    for rows in (100_000, 300_000):
        write_manifest(Store(str(tmp_path / str(rows))), rows)
        command = [sys.executable, "-c", READ_LABELLED, str(tmp_path / str(rows))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
        assert done.returncode == 0, done.stderr
        peaks.append(1024 * int(done.stdout))
    assert (peaks[1] - peaks[0]) / 200_000 < 250, peaks
