"""End the processes of vLLM when ours is killed.

vLLM ends them in an orderly stop. After a kill, its scheduler would keep the memory and the accelerator for good.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

# A program of its own, because a killed process runs no code. Its input ends with our process.
_WATCHER = """
import os, signal, sys
if not sys.stdin.read(1):
    for pid in map(int, sys.argv[1:]):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
"""


def kill_all(pids: Iterable[int]) -> None:
    """Kill processes, also those that have just ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_with_offspring(process_ids: Callable[[], set[int]]) -> None:
    """Kill processes, and those that they start meanwhile.

    An orphan that waits for another machine would not end with its parent.

    Args:
        process_ids: returns the processes, and all below.
    """
    stopped: set[int] = set()
    while fresh := process_ids() - stopped:
        for pid in fresh:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= fresh
    kill_all(stopped)


class OrphanWatcher:
    """Kills processes when ours has been killed."""

    def __init__(self, pids: Iterable[int]) -> None:
        # A session of its own, so that a signal to our process group does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _WATCHER, *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the watcher, after the processes have ended."""
        if self._process.poll() is None:
            self._process.communicate(b"1")
