"""Spans by OpenTelemetry, sent to a collector in batches by a thread of its own. Imported only where traces are on."""

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
from chassis.tracing import TRACEPARENT_HEADER, Attributes, Kind

_KINDS = {"server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT, "internal": trace.SpanKind.INTERNAL}
# How long a stopping process waits for its collector.
_CLOSE_TIMEOUT_S = 2.0
# How long one batch is tried, seconds; spans that came meanwhile wait, up to a bound, and then are dropped.
_EXPORT_TIMEOUT_S = 5.0


class OtlpSpan:
    """One span; see `chassis.tracing.Span`."""

    def __init__(self, inner: trace.Span) -> None:
        self._inner = inner

    def note(self, attributes: Attributes) -> None:
        """Add facts."""
        self._inner.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        """Say that the step failed."""
        self._inner.set_status(trace.StatusCode.ERROR)
        self._inner.set_attribute("error.type", reason)


class OtlpBackend:
    """Records spans; see `chassis.tracing.Backend`."""

    def __init__(self, service: str, endpoint: str, sample: float) -> None:
        """Begin to record; nothing is connected before the first batch."""
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=Resource.create({"service.name": f"tandem-{service}", "service.namespace": "tandem"}),
            shutdown_on_exit=False,
        )
        insecure = endpoint.startswith("http://")
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tandem")
        self._headers = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, kind: Kind, attributes: Attributes, parent: str | None) -> Iterator[OtlpSpan]:
        """Record the block."""
        around = self._headers.extract({TRACEPARENT_HEADER: parent}) if parent else context.get_current()
        facts = dict(attributes)
        if (request_id := current_request_id()) is not None:
            facts["tandem.request_id"] = request_id
        # Exceptions are not recorded: their tracebacks belong into the log.
        with self._tracer.start_as_current_span(
            name, around, _KINDS[kind], facts, record_exception=False, set_status_on_exception=False
        ) as inner:
            yield OtlpSpan(inner)

    def traceparent(self) -> str | None:
        """Return the current span as the header has it."""
        carrier: dict[str, str] = {}
        self._headers.inject(carrier)
        return carrier.get(TRACEPARENT_HEADER)

    def close(self) -> None:
        """Send what is not sent yet, and stop; a collector that is gone holds nobody up."""
        # On a thread of its own: the library waits half a minute for a collector, whatever it is told.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
