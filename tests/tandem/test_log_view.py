"""The logs of `tandem up` in a terminal and elsewhere."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from rich.console import Console

from tandem.client.call import DEFAULT_ADDRESS
from tandem.commands.log_view import JsonView, TerminalView, log_view

LINE = json.dumps(
    {
        "timestamp": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "event": "rpc",
        "service": "vision",
        "request_id": "abc",
        "code": "OK",
    }
)


def terminal() -> tuple[TerminalView, io.StringIO]:
    """Return a view on a narrow terminal, and the output."""
    stream = io.StringIO()
    return TerminalView(Console(file=stream, force_terminal=True, color_system=None, width=40)), stream


@pytest.fixture
def json_view() -> Iterator[tuple[JsonView, io.StringIO]]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    yield JsonView(stream), stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_terminal_line_starts_with_service_time_and_event() -> None:
    view, stream = terminal()
    view.log("vision", LINE)
    assert stream.getvalue() == "vision   03:04:05 rpc  code=OK  abc\n"


@pytest.mark.parametrize(
    "line", ["Traceback (most recent call last):", "[1, 2]", '{"no": "event"}', "[red]not a style"]
)
def test_a_line_that_is_not_an_event_is_shown_unchanged(line: str) -> None:
    view, stream = terminal()
    view.log("gateway", line)
    assert stream.getvalue().split(maxsplit=1) == ["gateway", f"{line}\n"]


def test_lines_for_a_closed_terminal_are_not_kept() -> None:
    """A stack that outlives its terminal logs for months."""
    written: list[int] = []

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            written.append(len(text))
            raise OSError

    view = TerminalView(Console(file=Closed(), force_terminal=True))
    for _ in range(5):
        view.log("vision", LINE)
    assert len(written) == 1


def test_ready_names_the_next_commands() -> None:
    for address, typed in (
        (DEFAULT_ADDRESS, "tandem ask IMAGE"),
        ("127.0.0.1:7", "tandem ask --address 127.0.0.1:7 "),
    ):
        view, stream = terminal()
        view.ready(address, "a-v1.0.0", "127.0.0.1:9")
        assert stream.getvalue().startswith(f"Ready: a-v1.0.0 answers at {address}")
        assert typed in stream.getvalue()
        assert "tandem top 127.0.0.1:9" in stream.getvalue()


def test_ready_names_the_page_if_there_is_one() -> None:
    view, stream = terminal()
    view.ready(DEFAULT_ADDRESS, "a-v1.0.0", "127.0.0.1:9", "http://127.0.0.1:8080/")
    assert "and at http://127.0.0.1:8080/." in stream.getvalue()


def test_every_line_outside_a_terminal_is_json(json_view: tuple[JsonView, io.StringIO]) -> None:
    view, stream = json_view
    for line in (LINE, "a traceback's line"):
        view.log("vision", line)
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert entries == [json.loads(LINE), {"event": "a traceback's line", "service": "vision"}]


def test_a_stream_that_is_not_a_terminal_gets_json(json_view: tuple[JsonView, io.StringIO]) -> None:
    assert isinstance(log_view(io.StringIO()), JsonView)
