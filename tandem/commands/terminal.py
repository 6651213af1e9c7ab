"""Where tables are shown."""

import sys

from rich.console import Console

_PIPE_WIDTH = 400  # characters


def table_console() -> Console:
    """Return a console on stdout. A pipe has no width: rich would take 80 characters, and cut what is longer."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
