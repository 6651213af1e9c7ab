"""Show the logs of `tandem up`.

A terminal gets columns. Everything else gets JSON lines.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TextIO

import structlog
from rich.console import Console
from rich.text import Text

from chassis.logs import configure_logging
from tandem.client import DEFAULT_ADDRESS
from tandem.commands.terminal import ForeignTextConsole

_SERVICE_STYLES = {"vision": "magenta", "language": "cyan", "gateway": "blue", "http": "green"}
_LEVEL_STYLES = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
_COLUMNS = {"timestamp", "level", "event", "service", "request_id"}  # other fields follow as key=value


class LogView(Protocol):
    """Shows the life of a stack. Several threads call `log`."""

    def log(self, service: str, line: str) -> None:
        """Show one log line of a service."""

    def starting(self, release: str) -> AbstractContextManager[None]:
        """Show that the stack is starting during the block."""

    def ready(self, address: str, release: str, metrics: str, page: str | None = None) -> None:
        """Show that the stack is ready.

        Args:
            address: host:port of the gateway.
            release: the release it serves.
            metrics: host:port of the language service's metrics.
            page: URL of the HTTP door's page, if there is one.
        """

    def stopping(self) -> None:
        """Show that the stack is stopping."""


def log_view(stream: TextIO) -> LogView:
    """Return the view that fits a stream."""
    return TerminalView(ForeignTextConsole(file=stream)) if stream.isatty() else JsonView(stream)


class TerminalView:
    """Columns for people, with the service's name first."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def log(self, service: str, line: str) -> None:
        """Show one line as columns: service, time, event, other fields."""
        entry = _entry(service, line)
        text = Text.assemble(
            (f"{service:<8} ", _SERVICE_STYLES[service]),
            (f"{str(entry.get('timestamp', ''))[11:19]:<8} ", "dim"),
            (str(entry["event"]), _LEVEL_STYLES.get(str(entry.get("level")), "")),
        )
        for key, value in entry.items():
            if key not in _COLUMNS:
                text.append(f"  {key}={value}", "dim")
        if "request_id" in entry:  # last, because it is long and matters least to a reader
            text.append(f"  {entry['request_id']}", "dim")
        try:
            self._console.print(text, soft_wrap=True)
        except OSError:
            self._console.quiet = True  # the terminal is gone, and rich would keep every later line in memory

    @contextmanager
    def starting(self, release: str) -> Iterator[None]:
        """Show a spinner below the lines."""
        with self._console.status(f"Starting {release} ..."):
            yield

    def ready(self, address: str, release: str, metrics: str, page: str | None = None) -> None:
        """Print the addresses and the commands to try next."""
        where = "" if address == DEFAULT_ADDRESS else f"--address {address} "
        self._console.print(
            Text.assemble(
                ("Ready: ", "bold green"),
                (f"{release} answers at {address}", "bold"),
                (f" and at {page}" if page is not None else "", "bold"),
                f'. In another terminal: tandem ask {where}IMAGE "question", or tandem top {metrics}. Ctrl-C stops it.',
            ),
            soft_wrap=True,
        )

    def stopping(self) -> None:
        """Print that running requests finish first."""
        self._console.print("Stopping when running requests are done; Ctrl-C again stops at once.")


class JsonView:
    """JSON lines: those of the services and our own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        configure_logging("tandem", "json", "info")
        self._log = structlog.get_logger()

    def log(self, service: str, line: str) -> None:
        """Write one line. Plain text is wrapped in JSON."""
        self._stream.write(json.dumps(_entry(service, line), ensure_ascii=False) + "\n")
        self._stream.flush()

    def starting(self, release: str) -> AbstractContextManager[None]:
        """Log 'starting'."""
        self._log.info("starting", release=release)
        return nullcontext()

    def ready(self, address: str, release: str, metrics: str, page: str | None = None) -> None:
        """Log 'ready'."""
        fields = {"page": page} if page is not None else {}
        self._log.info("ready", address=address, release=release, metrics=metrics, **fields)

    def stopping(self) -> None:
        """Log 'stopping'."""
        self._log.info("stopping")


def _entry(service: str, line: str) -> dict[str, Any]:
    """Return the fields of a log line.

    The event of a plain line, such as a traceback's, is the line itself.
    """
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) and "event" in entry else {"event": line, "service": service}
