"""Keep costly processes from delaying a busy service.

A process that runs only on idle processors (SCHED_IDLE) still delays a busy service: the kernel gives it some
milliseconds now and then, and it takes memory bandwidth. So while the service is busy, all costly processes together
compute for 2 ms in 50: often enough to end, and too short to delay a step by much.
"""

import ctypes
import os
import platform
import signal
import time
from collections import deque
from contextlib import suppress
from typing import Any

TURN_S = 0.002
_TURNS_OF_SERVICE = 24  # that follow each turn of a process
_BUSY_SHARE = 0.3  # of a processor
_SLICE_NS = 100_000  # the shortest
_NOT_CHILDREN = 1  # SCHED_FLAG_RESET_ON_FORK
_BY_SIGNAL = 0  # SIGEV_SIGNAL


class ProcessTurns:
    """Stops and continues costly processes."""

    def __init__(self, service_id: int) -> None:
        """Watch the service with this process id."""
        self._service_id = service_id
        self._waiting: deque[int] = deque()  # process ids, all stopped
        self._running: int | None = None
        self._ends_s = 0.0  # of the turn
        self._service_s = 0.0  # processor time of the service when it began

    def add(self, process_id: int) -> bool:
        """Let a process wait for its turn.

        Returns False if it takes turns already.
        """
        if process_id == self._running or process_id in self._waiting:
            return False
        _send(process_id, signal.SIGSTOP)
        self._waiting.append(process_id)
        return True

    def remove(self, process_id: int) -> None:
        """Let a process go on that is no longer costly."""
        if process_id == self._running:
            self._running = None
        elif process_id in self._waiting:
            self._waiting.remove(process_id)
            _send(process_id, signal.SIGCONT)

    def next(self) -> float | None:
        """Begin the next turn if the last one is over.

        Returns the seconds until the next call, None if no process is costly.
        """
        if self._running is None and not self._waiting:
            return None
        now_s = time.monotonic()
        if now_s >= self._ends_s:
            was_turn_of_process = self._running is not None
            self._stop()
            before_s, self._service_s = self._service_s, processor_s(self._service_id)
            is_busy = self._service_s - before_s > _BUSY_SHARE * TURN_S
            if was_turn_of_process and is_busy:
                self._ends_s = now_s + _TURNS_OF_SERVICE * TURN_S
            else:
                self._running = self._waiting.popleft()
                _send(self._running, signal.SIGCONT)
                self._ends_s = now_s + TURN_S
        return self._ends_s - now_s

    def _stop(self) -> None:
        if self._running is not None:
            _send(self._running, signal.SIGSTOP)
            self._waiting.append(self._running)
            self._running = None


def yield_processors(thread: int) -> None:
    """Let a thread run only when a processor is idle."""
    # At the lowest priority (nice) it would still take a processor for milliseconds, and the service would wait.
    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


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


class _Schedule(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2)."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("size", "policy")),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("runtime", "deadline", "period")),
        *((name, ctypes.c_uint32) for name in ("util_min", "util_max")),
    )


def wake_promptly() -> None:
    """Let this thread run at once whenever it wakes.

    It asks for a short slice, which Linux 6.12 and newer grant. Otherwise it may wait milliseconds for a busy
    processor. Its children do not inherit that.
    """
    number = {"x86_64": 314, "aarch64": 274}.get(platform.machine())
    if number is not None:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        schedule = _Schedule(size=ctypes.sizeof(_Schedule), flags=_NOT_CHILDREN, nice=nice, runtime=_SLICE_NS)
        ctypes.CDLL(None).syscall(number, 0, ctypes.byref(schedule), 0)  # older kernels ignore or refuse it


def processor_s(process_id: int) -> float:
    """Return the processor time of a process.

    0 if it has ended.
    """
    # The clock of another process, see clock_getcpuclockid(3).
    with suppress(OSError):
        return time.clock_gettime(~process_id << 3 | 2)
    return 0.0


def _send(process_id: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, number)
