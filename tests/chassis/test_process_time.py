"""Stop real processes that compute for too long."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from chassis.process_time import StopTimer, is_stopped, processor_s, yield_processors


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(processes: ExitStack, command: list[str]) -> int:
    process = processes.enter_context(subprocess.Popen(command))
    processes.callback(process.kill)
    return process.pid


# The power takes seconds, with the interpreter's lock.
_STOP_ITSELF = """
import sys
from chassis.process_time import StopTimer

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
    assert not is_stopped(process_id)
    assert stopped_s > 0.05


def test_a_cancelled_timer_stops_nobody(processes: ExitStack) -> None:
    process_id = start(processes, [sys.executable, "-c", _STOP_ITSELF, "0.05", "cancel"])
    _, status = os.waitpid(process_id, os.WUNTRACED)
    assert os.WIFEXITED(status)


def test_a_process_may_have_several_timers() -> None:
    for timer in [StopTimer() for _ in range(3)]:
        timer.start(1000)
        timer.cancel()


def test_a_thread_yields_the_processors_alone() -> None:
    policies: list[int] = []

    def compute() -> None:
        yield_processors(threading.get_native_id())
        policies.append(os.sched_getscheduler(threading.get_native_id()))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE
