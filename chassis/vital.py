"""End the process when a thread or task dies that it needs.

A process without one of its parts would look healthy and answer nothing. So the death of a part turns the health, and
the process drains and ends with an error. Whatever supervises it, such as Kubernetes, starts another.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

_log = structlog.get_logger()

_end_process: Callable[[], object] | None = None


def on_death(end_process: Callable[[], object] | None) -> None:
    """Set the end of the process, or None.

    Called on any thread. With None, deaths are only logged.
    """
    global _end_process
    _end_process = end_process


@contextmanager
def vital(name: str) -> Iterator[None]:
    """End the process if an error leaves this block.

    Put the whole life of a thread or task into it. The error is raised again, so the part can fail its callers.
    """
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException:
        _log.critical("vital part died: the process ends", part=name, exc_info=True)
        if _end_process is not None:
            _end_process()
        raise
