"""Progress of long work."""

import subprocess
import sys

WORK = """
import sys
from tasks.progress import advance, progress
sys.stdin.read()  # until nobody reads standard error any more
with progress("work", 1000):
    for _ in range(1000):
        advance()
print("done")
"""


def test_work_goes_on_when_nobody_reads_standard_error_any_more():
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stderr.close()
    process.stdin.close()
    assert process.stdout.read() == "done\n"
    process.stdout.close()
    process.wait(60)
