"""Where tables are shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

_PIPE_WIDTH = 400  # characters


def table_console() -> Console:
    """Return a console on stdout. A pipe has no width: rich would take 80 characters, and cut what is longer."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


@contextmanager
def shown_live() -> Iterator[Callable[[RenderableType], None]]:
    """Yield what shows a table in the place of the one before, in a pipe below it."""
    console = table_console()
    if not console.is_terminal:
        yield console.print
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda table: live.update(table, refresh=True)
