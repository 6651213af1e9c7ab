"""Trace requests: one tree of spans over all processes.

Tracing is off unless a collector is configured. A span then costs one comparison. The W3C header `traceparent` links
the spans of different processes, if the caller is in a trusted network. Span names follow OpenTelemetry's conventions
for RPC and generative AI.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from chassis.errors import FailedPrecondition
from chassis.network import LOOPBACK_NETWORKS, Networks
from chassis.spans import TRACEPARENT_HEADER, Attributes, Span, SpanKind, SpanRecorder


class _NoSpan:
    def set_attributes(self, attributes: Attributes) -> None: ...

    def fail(self, reason: str) -> None: ...


NO_SPAN: AbstractContextManager[Span] = nullcontext(_NoSpan())
_recorder: SpanRecorder | None = None
_peers = Networks(())


def span(
    name: str,
    kind: SpanKind = "internal",
    attributes: Attributes | None = None,
    parent: str | None = None,
) -> AbstractContextManager[Span]:
    """Record a `with` block as a span.

    Args:
        name: name of the operation. It has few values, so it never contains an id.
        kind: 'server' for an incoming RPC, 'client' for an outgoing one.
        attributes: attributes known at the start.
        parent: the caller's traceparent, as `parent_of` returns it. None means the current span.
    """
    if _recorder is None:
        return NO_SPAN
    return _recorder.span(name, kind, attributes or {}, parent)


def parent_of(metadata: Iterable[tuple[str, str | bytes]] | None, host: str) -> str | None:
    """Return the traceparent of a caller that may set one.

    Args:
        metadata: metadata of the call.
        host: IP address of its caller.
    """
    if _recorder is None or host not in _peers:
        return None
    return next((str(value) for key, value in metadata or () if key == TRACEPARENT_HEADER), None)


def traceparent() -> str | None:
    """Return the traceparent value of the current span, if any."""
    return _recorder.traceparent() if _recorder is not None else None


@contextmanager
def tracing(
    service: str, endpoint: str | None, sample: float, peers: Iterable[str] = LOOPBACK_NETWORKS
) -> Iterator[None]:
    """Record spans until the block ends.

    Args:
        service: name of this process.
        endpoint: 'http://host:port' of an OTLP collector (gRPC). None records nothing.
        sample: share of the traces started here that are recorded, 0 to 1. Traces of `peers` follow their choice.
        peers: networks of callers that may decide, by their traceparent, what is recorded.

    Raises:
        FailedPrecondition: reason 'NOT_INSTALLED'.
    """
    global _recorder, _peers  # one per process, like the log
    if endpoint is None:
        yield
        return
    try:
        from chassis.otlp import OtlpRecorder
    except ImportError:
        raise FailedPrecondition(
            "Traces need OpenTelemetry: pip install 'tandem-serving[traces]'.", reason="NOT_INSTALLED"
        ) from None
    recorder = _recorder = OtlpRecorder(service, endpoint, sample)
    _peers = Networks(peers)
    try:
        yield
    finally:
        _recorder = None
        recorder.close()
