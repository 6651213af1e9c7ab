"""The log, as a collector and a person read it."""

import io
import json
import logging
from contextlib import redirect_stderr
from typing import Any

import pytest
import structlog

from chassis.logs import configure_logging
from chassis.request_id import bound_request_id


def test_a_line_starts_with_timestamp_level_event_service_and_request_id(log_lines: Any) -> None:
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


def test_log_records_of_libraries_have_the_same_form(log_lines: Any) -> None:
    with bound_request_id("mine"):
        logging.getLogger("library").warning("%d files are missing", 3)
        logging.getLogger("library").debug("below the level")
    (line,) = log_lines()
    assert (line["event"], line["service"], line["request_id"]) == ("3 files are missing", "test", "mine")


def test_a_traceback_stays_in_its_line(log_lines: Any) -> None:
    """A log collector reads each line as one event."""
    try:
        raise ValueError("wrong\nin two lines")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed, too")
    ours, theirs = log_lines()
    assert "ValueError: wrong" in ours["exception"]
    assert "ValueError: wrong" in theirs["exception"]


def test_values_that_json_lacks_are_written_as_text(log_lines: Any) -> None:
    structlog.get_logger().info("odd", value=b"\xff", text="图片")
    (line,) = log_lines()
    assert (line["value"], line["text"]) == ("b'\\xff'", "图片")


@pytest.mark.usefixtures("log_lines")  # it restores the log's configuration
def test_lines_below_the_level_are_dropped() -> None:
    with redirect_stderr(io.StringIO()) as stderr:
        configure_logging("test", "json", "error")
    structlog.get_logger().warning("quiet")
    logging.getLogger("library").warning("quiet")
    structlog.get_logger().error("loud")
    (line,) = stderr.getvalue().splitlines()
    assert json.loads(line)["event"] == "loud"


@pytest.mark.usefixtures("log_lines")
def test_auto_means_json_outside_a_terminal() -> None:
    with redirect_stderr(io.StringIO()) as stderr:
        configure_logging("test", "auto", "info")
    structlog.get_logger().info("hello")
    assert json.loads(stderr.getvalue())["event"] == "hello"


@pytest.mark.usefixtures("log_lines")
def test_the_console_format_shows_no_local_variables() -> None:
    """Local variables can hold a key or a user's image."""
    with redirect_stderr(io.StringIO()) as stderr:
        configure_logging("test", "console", "info")
    key = "".join(["hunt", "er2"])
    try:
        raise ValueError(f"wrong, {len(key)} letters")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError: wrong, 7 letters" in stderr.getvalue()
    assert key not in stderr.getvalue()
