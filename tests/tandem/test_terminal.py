"""A terminal never obeys text from servers, files and logs."""

import io
import json
import logging
import os
import pty
import subprocess
import sys

import pytest
import structlog
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chassis.logs import configure_logging
from chassis.visible_text import visible
from tandem.commands.failures import exit_on_error
from tandem.commands.log_view import TerminalView
from tandem.commands.terminal import ForeignTextConsole
from tandem.errors import Internal

# Sets the title, moves the cursor up and erases a line: in C0, in C1, and by backspaces.
HOSTILE = ["\x1b]0;owned\x07", "\x1b[1A\x1b[2K", "\x9b2K", "ok\b\bno", "\x7f"]
CONTROLS = {*map(chr, (*range(32), *range(0x7F, 0xA0)))} - {"\n", "\t"}


def console(**options: object) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return ForeignTextConsole(file=stream, force_terminal=True, color_system=None, width=200, **options), stream


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_escaped_as_in_json(text: str) -> None:
    shown = visible(text)
    assert not CONTROLS & set(shown)
    assert json.loads(f'"{shown}"') == text
    assert visible(shown) == shown


def test_text_lines_and_tabs_stay() -> None:
    assert visible("a\tb\n红色 é \U0001f600") == "a\tb\n红色 é \U0001f600"


@pytest.mark.parametrize("text", [*HOSTILE, "[red]no style[/]", "[link=http://a]no link[/link]", ":boom:"])
def test_a_console_shows_foreign_text_without_obeying_it(text: str) -> None:
    shown, stream = console()
    table = Table(title=text, box=None)
    table.add_column(text)
    table.add_row(Text(text))
    for renderable in (text, Text(text), table):
        shown.print(renderable)
    assert not CONTROLS & set(stream.getvalue())
    if text.isprintable():
        assert stream.getvalue().count(text) == 5


def test_colors_of_our_own_are_kept() -> None:
    stream = io.StringIO()
    ForeignTextConsole(file=stream, force_terminal=True, color_system="standard").print(Text("good", "green"))
    assert stream.getvalue() == "\x1b[32mgood\x1b[0m\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_log_lines_of_a_stack_are_escaped(text: str) -> None:
    shown, stream = console()
    view = TerminalView(shown)
    view.log("vision", json.dumps({"event": text, "tag": text, "request_id": text, "level": "info"}))
    view.log("gateway", text)
    assert not CONTROLS & set(stream.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_the_console_log_of_a_service_is_escaped(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, root = io.StringIO(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("test", "console", "info")
    try:
        structlog.get_logger().info(text, tag=text, several=[text])
        try:
            raise ValueError(text)
        except ValueError:
            structlog.get_logger().exception("failed")
        logging.getLogger("some.library").warning(text)
    finally:
        logging.captureWarnings(False)
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "ValueError" in stderr.getvalue()
    assert not CONTROLS & set(stderr.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_errors_of_a_server_are_escaped(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_error():
        raise Internal(f"It failed: {text}.")
    assert not CONTROLS & set(capsys.readouterr().err)


@pytest.mark.parametrize("in_terminal", [True, False])
def test_streamed_text_is_escaped_in_a_terminal_and_unchanged_in_a_pipe(in_terminal: bool) -> None:
    code = f"from tandem.commands.terminal import show; show({HOSTILE[1]!r}, end='')"
    if not in_terminal:
        assert subprocess.check_output([sys.executable, "-c", code], timeout=60) == HOSTILE[1].encode()
        return
    ours, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=terminal, timeout=60, check=True)
    os.close(terminal)
    with os.fdopen(ours, "rb", buffering=0) as shown:
        assert shown.read(1000) == visible(HOSTILE[1]).encode()
