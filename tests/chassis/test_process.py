"""Whole processes, as supervisors, terminals and log collectors see them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.v1 import gateway_pb2, gateway_pb2_grpc
from tests.chassis.example_process import PROGRAM, Process


@pytest.fixture
def start() -> Iterator[Any]:
    with ExitStack() as processes:

        def begin(*flags: str) -> Process:
            return processes.enter_context(Process("--listen", "127.0.0.1:0", *flags))

        yield begin


def stubs(port: int) -> tuple[Any, Any, grpc.aio.Channel]:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    return gateway_pb2_grpc.GatewayStub(channel), health_pb2_grpc.HealthStub(channel), channel


def count(number: int) -> gateway_pb2.GatewayGenerateRequest:
    return gateway_pb2.GatewayGenerateRequest(routing_key=str(number))


async def test_a_process_serves_drains_on_sigterm_and_exits_cleanly(start: Any) -> None:
    process = start()
    ready = process.wait_for("ready")
    gateway, health, channel = stubs(ready["port"])
    async with channel:
        status = await health.Check(health_pb2.HealthCheckRequest(service="tandem.v1.Gateway"))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        call = gateway.Generate(count(100), metadata=(("x-request-id", "mine"),))
        await call.read()
        process.popen.send_signal(signal.SIGTERM)
        texts = [(await call.read()).delta.text for _ in range(99)]
        assert texts[-1] == "99"
        assert await call.code() == grpc.StatusCode.OK
    assert process.end() == 0
    assert [line["request_id"] for line in process.lines if line["event"] in ("freed", "rpc")] == ["mine", "mine"]
    events = [event for event in process.events() if "a library" not in event]
    assert events == ["ready", "stopping", "freed", "rpc", "closed", "stopped"]
    assert {line["service"] for line in process.lines} == {"example"}


async def test_the_death_of_a_vital_thread_turns_the_health_drains_and_ends_with_an_error(start: Any) -> None:
    """So that whatever supervises the process starts another."""
    process = start()
    ready = process.wait_for("ready")
    gateway, health, channel = stubs(ready["port"])
    async with channel:
        states = health.Watch(health_pb2.HealthCheckRequest(service="tandem.v1.Gateway"))
        assert (await states.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = gateway.Generate(count(50))
        await call.read()
        await gateway.Generate(gateway_pb2.GatewayGenerateRequest(routing_key="die")).read()
        assert (await states.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert [(await call.read()).delta.text for _ in range(49)][-1] == "49"
    assert process.end() == 1
    (line,) = [line for line in process.lines if line["event"] == "vital part died: the process ends"]
    assert (line["part"], line["level"]) == ("example", "critical")
    assert process.events()[-1] == "stopped"


def test_log_records_and_warnings_of_libraries_are_log_lines_too(start: Any) -> None:
    process = start()
    process.wait_for("ready")
    speaks, warns, _ready = process.lines
    assert (speaks["event"], speaks["level"]) == ("a library speaks", "warning")
    assert ("UserWarning: a library warns" in warns["event"], warns["level"]) == (True, "warning")


@pytest.mark.parametrize("level", ["warning", "error"])
def test_the_ready_line_ignores_the_log_level(level: str, start: Any) -> None:
    """The parent process reads the ports from this line."""
    process = start("--log-level", level)
    assert process.wait_for("ready")["port"] > 0
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0
    assert "stopped" not in process.events()


async def test_metrics_count_calls_over_http(start: Any) -> None:
    process = start()
    ready = process.wait_for("ready")
    gateway, _, channel = stubs(ready["port"])
    async with channel:
        assert len([_ async for _ in gateway.Generate(count(2))]) == 2
    url = f"http://127.0.0.1:{ready['metrics_port']}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read().decode())
    assert 'tandem_rpc_requests_total{code="OK",method="tandem.v1.Gateway/Generate"} 1.0' in text
    assert 'tandem_rpc_seconds_count{method="tandem.v1.Gateway/Generate"} 1.0' in text
    assert 'tandem_rpc_in_flight{method="tandem.v1.Gateway/Generate"} 0.0' in text


async def test_a_second_signal_stops_without_draining(start: Any) -> None:
    process = start("--metrics-port", "-1")
    ready = process.wait_for("ready")
    assert ready["metrics_port"] == -1
    gateway, _, channel = stubs(ready["port"])
    async with channel:
        await gateway.Generate(count(100_000)).read()
        process.popen.send_signal(signal.SIGINT)
        process.wait_for("stopping")
        started = time.perf_counter()
        process.popen.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.end) == 0
    assert time.perf_counter() - started < 20  # less than the 30 s of a drain
    assert "freed" in process.events()
    assert process.events()[-2:] == ["closed", "stopped"]


async def test_killing_a_client_cancels_its_rpc(start: Any) -> None:
    """A killed process closes its sockets without a gRPC message."""
    process = start()
    ready = process.wait_for("ready")
    code = f"""
import grpc, sys
from tandem.v1 import gateway_pb2, gateway_pb2_grpc
stub = gateway_pb2_grpc.GatewayStub(grpc.insecure_channel("127.0.0.1:{ready["port"]}"))
for _ in stub.Generate(gateway_pb2.GatewayGenerateRequest(routing_key="100000")):
    print("one", flush=True)
"""
    root = Path(__file__).parents[2]
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, cwd=root)
    assert client.stdout is not None
    assert await client.stdout.readline() == b"one\n"
    client.kill()
    await client.wait()
    process.wait_for("freed")
    assert process.wait_for("rpc")["code"] == "CANCELLED"


def test_a_signal_during_the_start_stops_the_process(start: Any) -> None:
    process = start("--start", "slowly")
    process.wait_for("loading")
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0
    assert process.events()[-1] == "stopped before it was ready"


def test_a_service_that_cannot_start_logs_one_line(start: Any) -> None:
    process = start("--start", "refused")
    assert process.end() == 1
    (line,) = process.lines
    assert (line["reason"], line["error"]) == ("DOES_NOT_FIT", "The model does not fit.")
    assert "exception" not in line


def test_a_bug_at_start_is_logged_with_its_traceback(start: Any) -> None:
    process = start("--start", "broken")
    assert process.end() == 1
    (line,) = process.lines
    assert "RuntimeError: a bug" in line["exception"]


@pytest.mark.parametrize("flag", ["--listen", "--metrics-port"])
def test_a_port_in_use_is_named(start: Any, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start(flag, f"127.0.0.1:{port}" if flag == "--listen" else str(port))
        assert process.end() == 1
    assert process.lines[-1]["reason"] == "CANNOT_LISTEN"
    assert str(port) in process.lines[-1]["error"]


def test_an_invalid_setting_ends_the_process_with_status_2() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TANDEM_EXAMPLE_DRAIN_S": "soon"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "--drain-s (TANDEM_EXAMPLE_DRAIN_S)" in run.stderr


def test_the_console_format_is_not_json(start: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    flags = ["--log-format", "console", "--start", "refused"]
    run = subprocess.run([sys.executable, "-c", PROGRAM, *flags], capture_output=True, text=True, env=environment)
    assert "cannot start" in run.stderr
    assert not run.stderr.startswith("{")


@pytest.mark.parametrize(
    ("stop", "limit", "status"), [("slowly", "--close-limit-s", 0), ("never", "--stop-limit-s", 1)]
)
def test_a_part_that_does_not_stop_is_left_behind(stop: str, limit: str, status: int, start: Any) -> None:
    """Whatever supervises the process waits for its end."""
    process = start("--stop", stop, limit, "1", "--drain-s", "0")
    process.wait_for("ready")
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == status
    line = next(line for line in process.lines if "did not stop in time" in line["event"])
    assert line.get("part") == ("service" if stop == "slowly" else None)


def test_metrics_are_on_loopback_wherever_the_service_listens() -> None:
    """They name tenants, and know no keys by default."""
    with Process("--listen", "0.0.0.0:0") as process:
        ready = process.wait_for("ready")
        for port, reachable in ((ready["port"], True), (ready["metrics_port"], False)):
            with socket.socket() as other:
                # An address of this machine that is not the one of the metrics.
                assert (other.connect_ex(("127.0.0.2", port)) == 0) == reachable
        with socket.create_connection(("127.0.0.1", ready["metrics_port"])):
            pass
