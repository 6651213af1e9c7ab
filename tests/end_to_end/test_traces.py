"""Traces over three real processes, received by a collector."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tandem.client.blocking import Client
from tandem.errors import InvalidArgument
from tandem.v1 import gateway_pb2, gateway_pb2_grpc
from tests.end_to_end.cluster import TAG, Cluster, image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans like an OpenTelemetry collector."""

    spans: list[tuple[str, Span]] = field(default_factory=list)  # with the service's name

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: bytes) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in self.spans if span.trace_id == trace_id]


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(scope="module")
def cluster(store: Path, collector: tuple[Collector, str]) -> Iterator[Cluster]:
    flags = ["--trace-endpoint", collector[1]]
    with Cluster(store, stage_flags=flags, gateway_flags=flags) as cluster:
        yield cluster


def spans_of(collector: Collector, request_id: str, count: int) -> dict[str, tuple[str, Span]]:
    """Wait for a request's `count` spans, by name.

    Processes export spans in batches, so they arrive with a delay.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        begun = [span for _, span in collector.spans if attributes(span).get("tandem.request_id") == request_id]
        if begun and len(found := collector.of(begun[0].trace_id)) >= count:
            return {span.name: (service, span) for service, span in found}
        time.sleep(0.1)
    pytest.fail(f"received only these spans: {[(service, span.name) for service, span in collector.spans]}")


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in span.attributes}


def test_a_request_is_one_trace_over_three_processes(cluster: Cluster, collector: tuple[Collector, str]) -> None:
    with Client(cluster.address("gateway-0")) as client:
        answer = client.ask("What is it?", images=[image(1)], max_tokens=5, ignore_eos=True)
    spans = spans_of(collector[0], answer.request_id, 7)
    parents = {
        "tandem.v1.Gateway/Generate": ("tandem-gateway", None),
        f"chat {TAG}": ("tandem-gateway", "tandem.v1.Gateway/Generate"),
        "find visual tokens": ("tandem-gateway", f"chat {TAG}"),
        "tandem.v1.VisionService/Encode": ("tandem-vision", "find visual tokens"),
        f"embeddings {TAG}": ("tandem-vision", "tandem.v1.VisionService/Encode"),
        "tandem.v1.LanguageService/Generate": ("tandem-language", f"chat {TAG}"),
        f"text_completion {TAG}": ("tandem-language", "tandem.v1.LanguageService/Generate"),
    }
    for name, (service, parent) in parents.items():
        found_service, span = spans[name]
        assert found_service == service
        assert span.parent_span_id == (spans[parent][1].span_id if parent else b""), name
        assert attributes(span)["tandem.request_id"] == answer.request_id
    chat = attributes(spans[f"chat {TAG}"][1])
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert chat["gen_ai.usage.output_tokens"] == 5
    assert attributes(spans["tandem.v1.VisionService/Encode"][1])["rpc.grpc.status_code"] == 0


def test_a_failure_is_recorded_in_the_spans_of_its_path(cluster: Cluster, collector: tuple[Collector, str]) -> None:
    with Client(cluster.address("gateway-0")) as client, pytest.raises(InvalidArgument) as raised:
        client.ask("What is it?", images=[b"no image"])
    assert raised.value.request_id is not None
    spans = spans_of(collector[0], raised.value.request_id, 6)
    chat = attributes(spans[f"chat {TAG}"][1])
    assert chat["error.type"] == raised.value.reason
    assert attributes(spans["tandem.v1.VisionService/Encode"][1])["rpc.grpc.status_code"] == 3
    assert attributes(spans["tandem.v1.Gateway/Generate"][1])["rpc.grpc.status_code"] == 3


def test_log_lines_contain_the_trace_id(cluster: Cluster, collector: tuple[Collector, str]) -> None:
    with Client(cluster.address("gateway-0")) as client:
        answer = client.ask("What is it?", max_tokens=2)
    _, span = spans_of(collector[0], answer.request_id, 4)["tandem.v1.LanguageService/Generate"]
    lines = [line for line in cluster.logs["language-0"] if answer.request_id in line]
    assert lines
    assert all(span.trace_id.hex() in line for line in lines)


def test_the_logs_of_all_three_processes_contain_the_request_id(cluster: Cluster) -> None:
    """So one search finds a request's logs in every process."""
    with Client(cluster.address("gateway-0")) as client:
        answer = client.ask("What is it?", images=[image(2)], max_tokens=2, request_id="a-story-1")
    assert answer.request_id == "a-story-1"
    deadline = time.monotonic() + 60
    for name, method in {"gateway-0": "Gateway/Generate", "vision-0": "/Encode", "language-0": "/Generate"}.items():
        while not any(method in line for line in lines_of(cluster, name, "a-story-1")):
            assert time.monotonic() < deadline, f"no line of {name}"
            time.sleep(0.05)


def lines_of(cluster: Cluster, name: str, request_id: str) -> list[str]:
    return [line for line in cluster.logs[name] if json.loads(line).get("request_id") == request_id]


def test_a_clients_trace_continues_in_the_gateway(cluster: Cluster, collector: tuple[Collector, str]) -> None:
    trace_id, span_id = bytes(range(1, 17)), bytes(range(1, 9))
    with grpc.insecure_channel(cluster.address("gateway-0")) as channel:
        header = ("traceparent", f"00-{trace_id.hex()}-{span_id.hex()}-01")
        stub = gateway_pb2_grpc.GatewayStub(channel)
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="Hi.")])
        stub.CountTokens(gateway_pb2.CountTokensRequest(messages=[message]), metadata=(header,))
    deadline = time.monotonic() + 60
    while not (found := collector[0].of(trace_id)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [span.parent_span_id for _, span in found] == [span_id]
