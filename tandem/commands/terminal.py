"""Print tables to a terminal or a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

_PIPE_WIDTH = 400  # characters


def table_console() -> Console:
    """Return a console on stdout that does not truncate pipes.

    A pipe has no width, and rich would assume 80 characters.
    """
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


@contextmanager
def live_display() -> Iterator[Callable[[RenderableType], None]]:
    """Yield a function that replaces the table on screen.

    In a pipe it prints the tables one below the other.
    """
    console = table_console()
    if not console.is_terminal:
        yield console.print
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda table: live.update(table, refresh=True)
