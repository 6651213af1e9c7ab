"""Logs: one line an event, JSON for machines or columns for a terminal, to stderr.

Everything goes the same way, what libraries log with the standard `logging` and warn of included. A line of a process
that handles a request carries its id, so one `grep` over all processes tells a request's story.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from chassis.request_id import current_request_id
from chassis.tracing import traceparent

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_FIRST_KEYS = ("timestamp", "level", "event", "service", "request_id")


def configure_logging(service: str, log_format: LogFormat, log_level: LogLevel) -> None:
    """Send every log line of this process to stderr.

    Args:
        service: the process's name, in every line.
        log_format: 'auto' is columns in a terminal and JSON elsewhere.
        log_level: lines below it are dropped before any work is done on them.
    """
    level = getattr(logging, log_level.upper())
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared, renderers = _shared_processors(service), _renderers(console)
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[strip, *renderers]))
    # Libraries stay out of our debug lines: gRPC alone would add several a message.
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)
    logging.captureWarnings(True)


def _shared_processors(service: str) -> list[Processor]:
    def add_origin(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        if (request_id := current_request_id()) is not None:
            event["request_id"] = request_id
        if (header := traceparent()) is not None:
            event["trace_id"] = header.split("-")[1]
        return event

    return [
        structlog.contextvars.merge_contextvars,
        add_origin,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _renderers(console: bool) -> list[Processor]:
    if console:
        # The default one prints every local variable, which is slow, long and may be a secret.
        traceback = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=traceback)]
    return [structlog.processors.format_exc_info, _in_reading_order, structlog.processors.JSONRenderer(default=str)]


def _in_reading_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put when, how bad, what, where and for whom before the rest."""
    first = {key: event[key] for key in _FIRST_KEYS if key in event}
    return {**first, **event}
