"""Processes that a killed parent leaves behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from language_service.engine.vllm_orphans import OrphanWatcher, kill_with_offspring
from tests.language_service.vllm.processes import children

_PARENT = """
import subprocess, sys, time
from language_service.engine.vllm_orphans import OrphanWatcher
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
watcher = OrphanWatcher([child.pid])
print(child.pid, flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_child_of_a_killed_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    assert runs(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_dismissed_watcher_kills_nobody() -> None:
    """The number may belong to another process by now."""
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as other:
        OrphanWatcher([other.pid]).dismiss()
        assert other.poll() is None


def test_processes_that_start_others_meanwhile_leave_none_behind() -> None:
    mark = str(time.time_ns())
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)", mark]
    code = f"import subprocess\nwhile True: subprocess.Popen({sleep})"
    with subprocess.Popen([sys.executable, "-S", "-c", code]) as parent:
        try:
            while len(children(parent.pid)) < 5:
                assert parent.poll() is None
            kill_with_offspring(lambda: {parent.pid} | set(children(parent.pid)))
            assert parent.wait(20) == -signal.SIGKILL
            deadline = time.monotonic() + 20
            while marked(mark):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            parent.kill()
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """Return the processes whose command line ends with `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_text().endswith(f"{mark}\0"):
                found.append(int(path.parent.name))
    return found
