"""Children of a supervisor, real processes all of them: none is left behind, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.supervisor import MARK, ChildError, Supervisor, answers, free_port, listens, marked_processes
from tests.flows.conftest import hear_ctrl_c

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
LEAVES_AN_ORPHAN = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True); print('gone')"


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def says(log: Path, word: str) -> bool:
    return log.exists() and word in log.read_text()


def test_a_child_serves_when_start_returns_and_its_output_is_in_its_log(tmp_path: Path):
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start("pages", command, answers(f"http://127.0.0.1:{port}/"))
        assert listens(port)()
    assert not listens(port)()
    assert "GET / HTTP" in (tmp_path / "logs" / "pages.log").read_text()


def test_one_that_ends_before_it_serves_is_an_error_with_its_last_words_and_stops_the_others(tmp_path: Path):
    failing = [sys.executable, "-c", "import sys; print('no such database'); sys.exit(3)"]
    supervisor = Supervisor(tmp_path)
    first = supervisor.start("first", SLEEP)
    words = r"broken ended with exit code 3; .*broken\.log ends with: no such database"
    with pytest.raises(ChildError, match=words), supervisor:
        supervisor.start("broken", failing, lambda: False)
    assert not is_running(first.process.pid)


def test_one_that_does_not_serve_in_time_is_an_error(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor, pytest.raises(ChildError, match="slow does not serve after 1 s"):
        supervisor.start("slow", SLEEP, lambda: False, seconds=1)
    assert not supervisor.children


def test_one_that_ends_later_is_an_error_of_those_who_watch(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("short", [sys.executable, "-c", "print('bye')"])
        with pytest.raises(ChildError, match=r"short ended with exit code 0; .* ends with: bye"):
            supervisor.watch()


def test_one_that_was_killed_is_started_again_as_often_as_is_said(tmp_path: Path):
    told: list[str] = []

    with Supervisor(tmp_path) as supervisor:
        supervisor.start("worker", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
        with pytest.raises(ChildError, match="worker ended with exit code -9"):
            supervisor.watch(restarts=2, tell=told.append)
    assert len(told) == 2
    assert told[0].endswith("it is started again")


def test_they_are_stopped_in_reverse(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        for name in ("first", "second"):
            said = f"lambda *_: (print('stopped {name}'), sys.exit())"
            notes = f"import signal, sys, time; signal.signal(signal.SIGTERM, {said})"
            command = [sys.executable, "-c", f"{notes}; print('ready', flush=True); time.sleep(600)"]
            supervisor.start(name, command, lambda name=name: says(tmp_path / f"{name}.log", "ready"))
    times = [(tmp_path / f"{name}.log").stat().st_mtime_ns for name in ("second", "first")]
    assert times == sorted(times)
    assert says(tmp_path / "first.log", "stopped first")


def test_one_that_ignores_the_signal_is_killed_after_a_grace_period(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        command = [sys.executable, "-c", STUBBORN]
        child = supervisor.start("stubborn", command, lambda: says(tmp_path / "stubborn.log", "ready"))
        child.stop(grace=0.5)
        assert child.process.returncode == -signal.SIGKILL


def test_what_a_dead_child_left_behind_ends_with_it(tmp_path: Path):
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("parent", [sys.executable, "-c", LEAVES_AN_ORPHAN, *SLEEP])
        child.process.wait()
        (orphan,) = marked_processes(child.mark)
        assert is_running(orphan)
    assert not marked_processes(child.mark)


def test_ctrl_c_leaves_nothing(tmp_path: Path):
    script = f"""
import sys
from pathlib import Path
from infra.supervisor import Supervisor
with Supervisor(Path({str(tmp_path)!r})) as supervisor:
    for name in ("first", "second"):
        print(supervisor.start(name, {SLEEP!r}).process.pid, flush=True)
    supervisor.watch()
"""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=hear_ctrl_c, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, pids))
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    deadline = time.monotonic() + 5
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
