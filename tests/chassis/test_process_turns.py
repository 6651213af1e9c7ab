"""Let real processes take turns."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

import pytest

from chassis.process_turns import ProcessTurns, processor_s, wake_promptly

BUSY = [sys.executable, "-c", "while True: pass"]
IDLE = [sys.executable, "-c", "import time; time.sleep(1000)"]


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(processes: ExitStack, command: list[str]) -> int:
    process = processes.enter_context(subprocess.Popen(command))
    processes.callback(process.kill)
    return process.pid


def is_stopped(process_id: int) -> bool:
    with open(f"/proc/{process_id}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


def running(process_ids: list[int]) -> list[int]:
    """Return who goes on, once the signals have arrived."""
    ends_s = time.monotonic() + 10
    while len(found := [one for one in process_ids if not is_stopped(one)]) > 1 and time.monotonic() < ends_s:
        time.sleep(0.001)
    return found


def turns_of(turns: ProcessTurns, ids: list[int], count: int) -> list[int]:
    """Return who ran in some turns."""
    ran = []
    for _ in range(count):
        wait_s = turns.next()
        assert wait_s is not None
        went_on = running(ids)
        assert len(went_on) <= 1
        ran += went_on
        time.sleep(wait_s)
    return ran


def test_one_process_at_a_time_computes_while_the_service_is_idle(processes: ExitStack) -> None:
    service, ids = start(processes, IDLE), [start(processes, BUSY) for _ in range(3)]
    turns = ProcessTurns(service)
    for one in ids:
        turns.add(one)
        turns.add(one)  # changes nothing
    assert set(turns_of(turns, ids, 12)) == set(ids)


def test_a_busy_service_has_most_of_the_turns(processes: ExitStack) -> None:
    service, costly = start(processes, BUSY), start(processes, BUSY)
    while processor_s(service) < 0.1:
        time.sleep(0.01)
    turns = ProcessTurns(service)
    turns.add(costly)
    turns.next()
    began_s, used_s = time.monotonic(), processor_s(costly)
    while time.monotonic() < began_s + 3.0:
        time.sleep(turns.next() or 0)
    share = (processor_s(costly) - used_s) / (time.monotonic() - began_s)
    assert 0.0 < share < 0.2


def test_a_process_goes_on_once_it_is_no_longer_costly(processes: ExitStack) -> None:
    service, ids = start(processes, IDLE), [start(processes, IDLE) for _ in range(2)]
    turns = ProcessTurns(service)
    for one in ids:
        turns.add(one)
    turns.next()
    for one in ids:
        turns.remove(one)
        turns.remove(one)  # changes nothing
    assert turns.next() is None
    assert not any(map(is_stopped, ids))


def test_a_process_that_has_ended_is_no_error(processes: ExitStack) -> None:
    process_id = start(processes, IDLE)
    turns = ProcessTurns(os.getpid())
    turns.add(process_id)
    os.kill(process_id, signal.SIGKILL)
    os.waitpid(process_id, 0)
    for _ in range(3):
        time.sleep(turns.next() or 0)
    turns.remove(process_id)
    assert turns.next() is None
    assert processor_s(process_id) == 0.0


# The power takes seconds, with the interpreter's lock.
_STOP_ITSELF = """
import sys
from chassis.process_turns import StopTimer

timer = StopTimer()
timer.start(60)
timer.cancel()
timer.start(float(sys.argv[1]))
if sys.argv[2] == "cancel":
    timer.cancel()
3**6_000_000
"""


def test_the_kernel_stops_a_process_that_computes_for_too_long(processes: ExitStack) -> None:
    process_id = start(processes, [sys.executable, "-c", _STOP_ITSELF, "0.05", "go on"])
    _, status = os.waitpid(process_id, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    stopped_s = processor_s(process_id)
    assert is_stopped(process_id)
    os.kill(process_id, signal.SIGCONT)
    os.waitpid(process_id, os.WUNTRACED)  # to its end
    assert processor_s(process_id) == 0.0
    assert stopped_s > 0.05


def test_a_cancelled_timer_stops_nobody(processes: ExitStack) -> None:
    process_id = start(processes, [sys.executable, "-c", _STOP_ITSELF, "0.05", "cancel"])
    _, status = os.waitpid(process_id, os.WUNTRACED)
    assert os.WIFEXITED(status)


_SHOW_SLICES = """
import os, pathlib
from chassis.process_turns import wake_promptly

def slice_ns():
    lines = pathlib.Path("/proc/self/sched").read_text().splitlines()
    return next((int(line.split()[-1]) for line in lines if line.startswith("se.slice")), 0)

before = slice_ns()
wake_promptly()
after = slice_ns()
if os.fork() == 0:
    print(before, after, slice_ns())
else:
    os.wait()
"""


def test_a_process_that_wakes_promptly_has_a_short_slice_and_its_children_have_not() -> None:
    done = subprocess.run([sys.executable, "-c", _SHOW_SLICES], capture_output=True, text=True, check=True)
    before, after, of_child = map(int, done.stdout.split())
    assert of_child == before
    if before and kernel_version() >= (6, 12):
        assert after == 100_000
    else:
        assert after == before  # older kernels give no slice of one's own


def kernel_version() -> tuple[int, ...]:
    return tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))


def test_a_thread_can_wake_promptly_alone() -> None:
    """The slice is that of the thread.

    Older kernels refuse it without an error.
    """
    thread = Thread(target=wake_promptly)
    thread.start()
    thread.join()
