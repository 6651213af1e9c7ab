"""Span types that `chassis.tracing` and its recorders share."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

TRACEPARENT_HEADER = "traceparent"  # W3C Trace Context

Attributes = Mapping[str, str | int | float | bool | list[str]]
SpanKind = Literal["server", "client", "internal"]


class Span(Protocol):
    """One step of a request."""

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes to the span."""
        ...

    def fail(self, reason: str) -> None:
        """Mark the span as failed. The reason is one word."""
        ...


class SpanRecorder(Protocol):
    """Records spans and sends them to a collector."""

    def span(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: str | None
    ) -> AbstractContextManager[Span]:
        """Record the block as a span.

        `parent` is the caller's traceparent. With None, the parent is the current span.
        """
        ...

    def traceparent(self) -> str | None:
        """Return the current span as a traceparent value."""
        ...

    def close(self) -> None:
        """Send the remaining spans and stop."""
        ...
