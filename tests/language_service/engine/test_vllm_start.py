"""Starts that wait for processes, without vLLM."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from language_service.engine.vllm_start import start_on_thread


class Start:
    """Waits until its process has ended, as vLLM does.

    Then it fails, unless `succeeds` is set.
    """

    def __init__(self, *, makes_after_s: float = 0, succeeds: bool = False) -> None:
        self.makes_after_s, self.succeeds = makes_after_s, succeeds
        self.processes: list[subprocess.Popen[bytes]] = []
        self.has_begun, self.has_made = threading.Event(), threading.Event()
        self.num_shutdowns = 0

    def __call__(self) -> "Start":
        self.has_begun.set()
        time.sleep(self.makes_after_s)
        self.processes.append(sleeper())
        self.has_made.set()
        self.processes[-1].wait()
        if not self.succeeds:
            raise RuntimeError("a process has ended")
        return self

    def process_ids(self) -> set[int]:
        return {process.pid for process in self.processes if process.poll() is None}

    def shutdown(self) -> None:
        self.num_shutdowns += 1


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])


@pytest.mark.parametrize("makes_after_s", [0, 0.5])
async def test_a_cancelled_start_kills_the_processes_that_it_makes(makes_after_s: float) -> None:
    """Also those that it makes after the cancellation."""
    start = Start(makes_after_s=makes_after_s)
    with sleeper() as other:
        start.processes.append(other)
        starting = asyncio.create_task(start_on_thread(start, start.process_ids))
        assert await asyncio.to_thread((start.has_begun if makes_after_s else start.has_made).wait, 20)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(starting, 20)
        assert start.process_ids() == {other.pid}
        other.kill()


async def test_a_start_that_is_ready_when_it_is_cancelled_is_shut_down() -> None:
    start = Start(succeeds=True)
    starting = asyncio.create_task(start_on_thread(start, start.process_ids))
    assert await asyncio.to_thread(start.has_made.wait, 20)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, 20)
    assert start.num_shutdowns == 1


async def test_a_start_that_fails_raises_its_error() -> None:
    start = Start()
    starting = asyncio.create_task(start_on_thread(start, start.process_ids))
    assert await asyncio.to_thread(start.has_made.wait, 20)
    start.processes[0].kill()
    with pytest.raises(RuntimeError, match="a process has ended"):
        await asyncio.wait_for(starting, 20)
