"""Read and limit the processor time of processes."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from typing import Any

_BY_SIGNAL = 0  # SIGEV_SIGNAL


def yield_processors(thread: int) -> None:
    """Let a thread run only when a processor is idle."""
    # At the lowest priority (nice) it would still take a processor for milliseconds, and the service would wait.
    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def processor_s(process_id: int) -> float:
    """Return the processor time of a process.

    0 if it has ended.
    """
    # The clock of another process, see clock_getcpuclockid(3).
    with suppress(OSError):
        return time.clock_gettime(~process_id << 3 | 2)
    return 0.0


def is_stopped(process_id: int) -> bool:
    """Return whether a signal has stopped a process."""
    with suppress(OSError), open(f"/proc/{process_id}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2].startswith(b"T")
    return False


class StopTimer:
    """Stops this process when it has computed for too long.

    The kernel does that at a tick, so it also stops code that holds the interpreter's lock. The parent notices.
    """

    def __init__(self) -> None:
        """Make the timer, not running.

        Raises:
            OSError: the system has too many timers.
        """
        event = _SignalEvent(signal=signal.SIGSTOP, notify=_BY_SIGNAL)
        self._number = ctypes.c_void_p()
        if _function("timer_create")(time.CLOCK_PROCESS_CPUTIME_ID, ctypes.byref(event), ctypes.byref(self._number)):
            raise OSError("no timer is left")
        self._set = _function("timer_settime")

    def start(self, seconds: float) -> None:
        """Stop the process after this much processor time from now."""
        whole, rest = divmod(round(seconds * 1e9), 10**9)
        self._set(self._number, 0, ctypes.byref(_TimerValue(seconds=whole, nanoseconds=rest)), None)

    def cancel(self) -> None:
        """Let the process compute for as long as it wants."""
        self.start(0)


class _SignalEvent(ctypes.Structure):
    """`struct sigevent` of timer_create(2)."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class _TimerValue(ctypes.Structure):
    """`struct itimerspec` of timer_settime(2)."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("interval_seconds", "interval_nanoseconds", "seconds", "nanoseconds")
    )


def _function(name: str) -> Any:
    """Return a function of the C library.

    Before glibc 2.34, those of timers were in a library of their own.
    """
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, name) else getattr(ctypes.CDLL("librt.so.1"), name)
