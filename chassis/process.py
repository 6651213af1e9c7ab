"""Run a server process: log, event loop, signals, ready, stop."""

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, TypeVar

import structlog
import uvloop

from chassis.errors import TandemError
from chassis.logs import configure_logging
from chassis.metrics import TASKS
from chassis.settings import ProcessSettings
from chassis.vital import on_death
from chassis.worker_link import WorkerLink

STOP_S = 25.0  # longest time that all steps after the drain may take together

_log = structlog.get_logger()
# The line "ready" ignores the log level: the parent process waits for it and reads the ports from it.
_always = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


class ProcessLife:
    """The steps of a process that its signals decide.

    The first signal drains, the second stops now, and the third has its default effect. Whatever hangs, the process
    ends `STOP_S` after the longest drain.

    Attributes:
        drain: set by the first signal.
        stop_now: set by the second signal.
        has_failed: whether a vital part has died. The process then ends with status 1.
    """

    def __init__(self, drain_s: float, link: WorkerLink | None = None) -> None:
        """Handle SIGTERM and Ctrl-C from now on.

        Until the process is ready, a signal cancels the current task.

        Args:
            drain_s: longest wait for requests in flight, seconds.
            link: to the supervisor, if the process is one of several workers.
        """
        self._drain_s = drain_s
        self._link = link
        self._last: threading.Timer | None = None
        self.drain = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.has_failed = False
        self._is_ready = False
        self._starting = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._received)

    def announce_ready(self, **fields: object) -> None:
        """Log the line "ready" with `fields`, such as the ports.

        A worker tells its supervisor, which logs "ready" for all of them.
        """
        # Objects of the start live as long as the process. Exclude them from garbage collection. Otherwise a full
        # collection, every few thousand requests, would pause all streams for tens of milliseconds.
        gc.collect()
        gc.freeze()
        self._is_ready = True
        if self._link is not None:
            self._link.announce_ready(fields)
        _always.info("ready" if self._link is None else "worker ready", **fields)

    def fail(self) -> None:
        """Drain, because a vital part has died."""
        self.has_failed = True
        if not self.drain.is_set():
            self._received()

    def _received(self) -> None:
        if self._is_ready and not self.drain.is_set():
            self._end_in(self._drain_s + STOP_S)
            self.drain.set()
            return
        self._end_in(STOP_S)
        self.stop_now.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        if not self._is_ready and self._starting is not None:
            self._starting.cancel()

    def _end_in(self, seconds: float) -> None:
        """End the process in `seconds`, from a thread.

        The event loop may hang by then, and so may the end of the interpreter, which waits for threads.
        """
        if self._last is not None:
            self._last.cancel()
        self._last = threading.Timer(seconds, _end_at_once)
        self._last.daemon = True
        self._last.start()


def _end_at_once() -> None:
    _log.critical("ended at once, because a part did not stop in time")
    os._exit(1)


async def within(limit_s: float, step: str, awaitable: Awaitable[Any]) -> None:
    """Await a step of the shutdown within a time limit."""
    try:
        async with asyncio.timeout(limit_s):
            await awaitable
    except TimeoutError:
        _log.error("part did not stop in time", part=step, limit_s=limit_s)


T = TypeVar("T")


@asynccontextmanager
async def left_within(limit_s: float, step: str, manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Leave a context manager within a time limit.

    An error of the block is not passed to it.
    """
    stack = AsyncExitStack()
    entered = await stack.enter_async_context(manager)
    try:
        yield entered
    finally:
        await within(limit_s, step, stack.aclose())


Serve = Callable[[ProcessLife], Coroutine[Any, Any, None]]


def run_process(name: str, settings: ProcessSettings, serve: Serve, link: WorkerLink | None = None) -> None:
    """Run `serve` until it returns, after SIGTERM or Ctrl-C.

    Args:
        name: name of the process in its log.
        settings: settings of the process.
        serve: starts the server, says that it is ready, waits for the signal to drain, and stops the server.
        link: to the supervisor of a worker, see `chassis.workers`.

    Raises:
        SystemExit: status 1, the server could not start, or a vital part has died. The log says why, in one line.
    """
    configure_logging(name, settings.log_format, settings.log_level)
    try:
        if uvloop.run(_run(settings, serve, link)).has_failed:
            raise SystemExit(1)
    except asyncio.CancelledError:
        _log.info("stopped before it was ready")
    except TandemError as error:
        _log.error("cannot start", reason=error.reason, error=error.local_message)
        raise SystemExit(1) from None
    except Exception:
        _log.exception("cannot start")
        raise SystemExit(1) from None


async def _run(settings: ProcessSettings, serve: Serve, link: WorkerLink | None) -> ProcessLife:
    loop = asyncio.get_running_loop()
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    life = ProcessLife(settings.drain_s, link)
    on_death(lambda: loop.call_soon_threadsafe(life.fail))
    try:
        async with link.kept(life.fail) if link is not None else nullcontext():
            await serve(life)
    except asyncio.CancelledError:
        if life.has_failed:
            raise SystemExit(1) from None
        raise
    finally:
        on_death(None)
    _log.info("stopped")
    return life
