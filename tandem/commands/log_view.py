"""How `tandem up` shows what its services say: columns in a terminal, JSON lines elsewhere."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TextIO

import structlog
from rich.console import Console
from rich.text import Text

from chassis.logs import configure_logging
from tandem.client import DEFAULT_ADDRESS

_SERVICE_STYLES = {"vision": "magenta", "language": "cyan", "gateway": "blue"}
_LEVEL_STYLES = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
_SHOWN_APART = {"timestamp", "level", "event", "service", "request_id"}  # the rest of a line follows as key=value


class LogView(Protocol):
    """Shows a stack from its start to its end. `log` is called from several threads."""

    def log(self, service: str, line: str) -> None:
        """Show one line a service wrote."""

    def starting(self, release: str) -> AbstractContextManager[None]:
        """Show that it starts, for the length of the block."""

    def ready(self, address: str, release: str, metrics: str) -> None:
        """Say that it can be used; the language service shows its metrics at `metrics`."""

    def stopping(self) -> None:
        """Say that it stops."""


def log_view(stream: TextIO) -> LogView:
    """Return the view that fits a stream."""
    return TerminalView(Console(file=stream)) if stream.isatty() else JsonView(stream)


class TerminalView:
    """Columns with the service in front."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def log(self, service: str, line: str) -> None:
        """Show one line in columns: service, time, event, the rest."""
        entry = _entry(service, line)
        text = Text.assemble(
            (f"{service:<8} ", _SERVICE_STYLES[service]),
            (f"{str(entry.get('timestamp', ''))[11:19]:<8} ", "dim"),
            (str(entry["event"]), _LEVEL_STYLES.get(str(entry.get("level")), "")),
        )
        for key, value in entry.items():
            if key not in _SHOWN_APART:
                text.append(f"  {key}={value}", "dim")
        if "request_id" in entry:  # long, and the least to a reader: last
            text.append(f"  {entry['request_id']}", "dim")
        try:
            self._console.print(text, soft_wrap=True)
        except OSError:
            self._console.quiet = True  # a terminal that is gone stays gone, and rich would keep every line for it

    @contextmanager
    def starting(self, release: str) -> Iterator[None]:
        """Turn a spinner below the lines."""
        with self._console.status(f"Starting {release} ..."):
            yield

    def ready(self, address: str, release: str, metrics: str) -> None:
        """Say it in bold, and what to type next."""
        where = "" if address == DEFAULT_ADDRESS else f"--address {address} "
        self._console.print(
            Text.assemble(
                ("Ready: ", "bold green"),
                (f"{release} answers at {address}", "bold"),
                f'. In another terminal: tandem ask {where}IMAGE "question", or tandem top {metrics}. Ctrl-C stops it.',
            ),
            soft_wrap=True,
        )

    def stopping(self) -> None:
        """Say what is waited for."""
        self._console.print("Stopping when running requests are done; Ctrl-C again stops at once.")


class JsonView:
    """JSON lines as the services wrote them, and our own beside them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        configure_logging("tandem", "json", "info")
        self._log = structlog.get_logger()

    def log(self, service: str, line: str) -> None:
        """Pass one line on; one that is not JSON, a traceback's say, is wrapped so that the log stays JSON."""
        self._stream.write(json.dumps(_entry(service, line), ensure_ascii=False) + "\n")
        self._stream.flush()

    def starting(self, release: str) -> AbstractContextManager[None]:
        """Log it."""
        self._log.info("starting", release=release)
        return nullcontext()

    def ready(self, address: str, release: str, metrics: str) -> None:
        """Log it."""
        self._log.info("ready", address=address, release=release, metrics=metrics)

    def stopping(self) -> None:
        """Log it."""
        self._log.info("stopping")


def _entry(service: str, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) and "event" in entry else {"event": line, "service": service}
