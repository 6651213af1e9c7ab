"""Print text and tables to a terminal or a pipe.

Text from a server, a file or a log is foreign. A terminal gets its control characters escaped, and rich takes no markup
from it. A pipe gets text unchanged.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment

from chassis.visible_text import visible

_PIPE_WIDTH = 400  # characters


class ForeignTextConsole(Console):
    """A console that is safe for foreign text."""

    def __init__(self, **options: Any) -> None:
        """Take the options of `rich.console.Console`."""
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with control characters escaped.

        Colors are added later, and commands of rich itself are marked as such.
        """
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def table_console() -> Console:
    """Return a console on stdout that does not truncate pipes.

    A pipe has no width, and rich would assume 80 characters.
    """
    return ForeignTextConsole(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def show(text: str, *, end: str = "\n") -> None:
    """Print foreign text to stdout, at once."""
    sys.stdout.write((visible(text) if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


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
