"""Log one line per event to stderr, as JSON or columns.

Log records and warnings of libraries take the same path. Lines logged during a request contain its id, so one `grep`
over all processes finds everything about a request.
"""

import io
import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from chassis.request_id import current_request_id
from chassis.tracing import traceparent
from chassis.visible_text import visible

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEADING_KEYS = ("timestamp", "level", "event", "service", "request_id")


def configure_logging(service: str, log_format: LogFormat, log_level: LogLevel) -> None:
    """Configure the log of this process.

    Args:
        service: name of this process, in every line.
        log_format: 'auto' means 'console' in a terminal and 'json' elsewhere.
        log_level: lowest level that is logged.
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
    # Never log debug records of libraries: gRPC alone would add several per message.
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
        # The default formatter prints all local variables. They are slow to print and may be secret.
        return [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)]
    return [structlog.processors.format_exc_info, _leading_keys_first, structlog.processors.JSONRenderer(default=str)]


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, which a terminal would obey."""
    return {key: visible(value) if isinstance(value, str) else value for key, value in event.items()}


def _traceback(stream: TextIO, exception: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exception)
    stream.write(visible(text.getvalue()))


def _leading_keys_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put timestamp, level, event, service and request_id first."""
    leading = {key: event[key] for key in _LEADING_KEYS if key in event}
    return {**leading, **event}
