"""Traces: where the time of one request went, as one tree of spans over all processes.

Off unless a collector is named; then a span costs one comparison. Spans are handed from process to process by the W3C
header `traceparent`, and named after OpenTelemetry's conventions for RPC and generative AI.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

from chassis.errors import FailedPrecondition

TRACEPARENT_HEADER = "traceparent"

Attributes = Mapping[str, str | int | float | bool | list[str]]
Metadata = Iterable[tuple[str, str | bytes]]
Kind = Literal["server", "client", "internal"]


class Span(Protocol):
    """One step of a request."""

    def note(self, attributes: Attributes) -> None:
        """Add facts."""
        ...

    def fail(self, reason: str) -> None:
        """Say that the step failed, and why in one word."""
        ...


class Backend(Protocol):
    """What records spans."""

    def span(self, name: str, kind: Kind, attributes: Attributes, parent: str | None) -> AbstractContextManager[Span]:
        """Record the block; `parent` is a caller's traceparent, None takes the span around it."""
        ...

    def traceparent(self) -> str | None:
        """Return the current span as the header has it."""
        ...

    def close(self) -> None:
        """Send what is not sent yet, and stop."""
        ...


class _NoSpan:
    def note(self, attributes: Attributes) -> None: ...

    def fail(self, reason: str) -> None: ...


NO_SPAN: AbstractContextManager[Span] = nullcontext(_NoSpan())
_backend: Backend | None = None


def span(
    name: str, kind: Kind = "internal", attributes: Attributes | None = None, metadata: Metadata | None = None
) -> AbstractContextManager[Span]:
    """Return a context manager that records its block as a step of the current request.

    Args:
        name: what is done, of few kinds: never with an id in it.
        kind: 'server' for a call that is answered, 'client' for one that is made.
        attributes: facts known at the start.
        metadata: of the call that is answered; its traceparent is the span's parent.
    """
    if _backend is None:
        return NO_SPAN
    parent = next((str(value) for key, value in metadata or () if key == TRACEPARENT_HEADER), None)
    return _backend.span(name, kind, attributes or {}, parent)


def traceparent() -> str | None:
    """Return the header that makes a call part of the current trace; None while switched off or outside of one."""
    return _backend.traceparent() if _backend is not None else None


@contextmanager
def tracing(service: str, endpoint: str | None, sample: float) -> Iterator[None]:
    """Record spans for the length of the block.

    Args:
        service: the process's name.
        endpoint: 'http://host:port' of an OTLP collector (gRPC); None records nothing.
        sample: part of the traces begun here that are recorded, 0 to 1; those begun by a caller follow the caller.

    Raises:
        FailedPrecondition: reason 'NOT_INSTALLED'.
    """
    global _backend  # one for the process, like its log
    if endpoint is None:
        yield
        return
    try:
        from chassis.otlp import OtlpBackend
    except ImportError:
        raise FailedPrecondition(
            "Traces need OpenTelemetry: pip install 'tandem-serving[traces]'.", reason="NOT_INSTALLED"
        ) from None
    backend = _backend = OtlpBackend(service, endpoint, sample)
    try:
        yield
    finally:
        _backend = None
        backend.close()
