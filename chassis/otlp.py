"""Send spans to an OpenTelemetry collector. Imported only if tracing is on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chassis.request_id import current_request_id
from chassis.spans import TRACEPARENT_HEADER, Attributes, SpanKind

_KINDS = {"server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT, "internal": trace.SpanKind.INTERNAL}
_CLOSE_TIMEOUT_S = 2.0  # longest wait for the collector when the process stops
_EXPORT_TIMEOUT_S = 5.0  # per batch. Newer spans wait in a bounded queue, then they are dropped


class OtlpSpan:
    """An OpenTelemetry span. See `chassis.spans.Span`."""

    def __init__(self, inner: trace.Span) -> None:
        self._inner = inner

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes to the span."""
        self._inner.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        """Mark the span as failed. The reason is one word."""
        self._inner.set_status(trace.StatusCode.ERROR)
        self._inner.set_attribute("error.type", reason)


class OtlpRecorder:
    """Sends spans to a collector, from its own thread."""

    def __init__(self, service: str, endpoint: str, sample: float) -> None:
        """Start to record. The exporter connects with its first batch."""
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource.create({"service.name": f"tandem-{service}", "service.namespace": "tandem"}),
            shutdown_on_exit=False,
        )
        insecure = endpoint.startswith("http://")
        exporter = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=insecure,
            timeout=_EXPORT_TIMEOUT_S,
            channel_options=(("grpc.enable_http_proxy", 0),),  # type: ignore[arg-type]  # gRPC takes numbers, too
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tandem")
        self._headers = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, kind: SpanKind, attributes: Attributes, parent: str | None) -> Iterator[OtlpSpan]:
        """Record the block as a span."""
        surrounding = self._headers.extract({TRACEPARENT_HEADER: parent}) if parent else context.get_current()
        recorded = dict(attributes)
        if (request_id := current_request_id()) is not None:
            recorded["tandem.request_id"] = request_id
        # Do not record exceptions: their tracebacks are in the log.
        with self._tracer.start_as_current_span(
            name, surrounding, _KINDS[kind], recorded, record_exception=False, set_status_on_exception=False
        ) as inner:
            yield OtlpSpan(inner)

    def traceparent(self) -> str | None:
        """Return the current span as a traceparent value."""
        carrier: dict[str, str] = {}
        self._headers.inject(carrier)
        return carrier.get(TRACEPARENT_HEADER)

    def close(self) -> None:
        """Send the remaining spans and stop, within `_CLOSE_TIMEOUT_S`."""
        # In a thread, because the library waits half a minute for a missing collector and ignores its timeout.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
