"""What a log collector and a person read."""

import io
import json
import logging
from contextlib import redirect_stderr
from typing import Any

import pytest
import structlog

from chassis.logs import configure_logging
from chassis.request_id import bound_request_id


def test_a_line_says_when_how_bad_what_where_and_for_whom_first(log_lines: Any) -> None:
    with bound_request_id("mine"):
        structlog.get_logger().warning("queue full", depth=3)
    (line,) = log_lines()
    assert list(line) == ["timestamp", "level", "event", "service", "request_id", "depth"]
    assert (line["level"], line["event"], line["service"], line["request_id"]) == (
        "warning",
        "queue full",
        "test",
        "mine",
    )
    assert line["timestamp"].endswith("Z")


def test_libraries_log_the_same_way(log_lines: Any) -> None:
    with bound_request_id("mine"):
        logging.getLogger("library").warning("%d files are missing", 3)
        logging.getLogger("library").debug("not for us")
    (line,) = log_lines()
    assert (line["event"], line["service"], line["request_id"]) == ("3 files are missing", "test", "mine")


def test_a_traceback_stays_in_its_line(log_lines: Any) -> None:
    """Collectors read line by line; a traceback of twenty lines is twenty events to them."""
    try:
        raise ValueError("wrong\nin two lines")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed, too")
    ours, theirs = log_lines()
    assert "ValueError: wrong" in ours["exception"]
    assert "ValueError: wrong" in theirs["exception"]


def test_what_json_does_not_know_is_written_as_text(log_lines: Any) -> None:
    structlog.get_logger().info("odd", value=b"\xff", text="图片")
    (line,) = log_lines()
    assert (line["value"], line["text"]) == ("b'\\xff'", "图片")


@pytest.mark.usefixtures("log_lines")  # which puts the log's configuration back
def test_lines_below_the_level_are_dropped() -> None:
    with redirect_stderr(io.StringIO()) as stderr:
        configure_logging("test", "json", "error")
    structlog.get_logger().warning("quiet")
    logging.getLogger("library").warning("quiet")
    structlog.get_logger().error("loud")
    (line,) = stderr.getvalue().splitlines()
    assert json.loads(line)["event"] == "loud"


@pytest.mark.usefixtures("log_lines")
def test_outside_a_terminal_auto_is_json() -> None:
    with redirect_stderr(io.StringIO()) as stderr:
        configure_logging("test", "auto", "info")
    structlog.get_logger().info("hello")
    assert json.loads(stderr.getvalue())["event"] == "hello"


@pytest.mark.usefixtures("log_lines")
def test_the_console_form_shows_no_local_variables() -> None:
    """They may hold a key or somebody's image."""
    with redirect_stderr(io.StringIO()) as stderr:
        configure_logging("test", "console", "info")
    key = "".join(["hunt", "er2"])
    try:
        raise ValueError(f"wrong, {len(key)} letters")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError: wrong, 7 letters" in stderr.getvalue()
    assert key not in stderr.getvalue()
