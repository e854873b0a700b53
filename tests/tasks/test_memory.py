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
    assert (large - small) / 45_000 < 400
    assert large < 400e6
