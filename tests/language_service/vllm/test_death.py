"""The death of vLLM's processes."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.errors import TandemError
from chassis.grpc_errors import from_rpc_error
from tests import processes
from tests.language_service.process import ask, start, text
from tests.language_service.vllm.conftest import ENGINE_FLAGS, VllmRunning
from tests.language_service.vllm.models import STABLE
from tests.language_service.vllm.processes import children, engine_core, wait_until_gone

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

STREAMS = 30
BACK_S = 240  # on an idle machine it takes a tenth of it


@pytest.fixture
def service(models: Path) -> Iterator[VllmRunning]:
    with processes.running(VllmRunning, models, "--tags", STABLE, *ENGINE_FLAGS) as running:
        yield running


def is_serving(service: VllmRunning) -> bool:
    request = health_pb2.HealthCheckRequest(service=f"tandem.v1.LanguageService/{STABLE}")
    answer = health_pb2_grpc.HealthStub(service.channel).Check(request, timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def until(service: VllmRunning, *, serving: bool, within_s: float) -> float:
    """Wait for a state of health, and return the seconds."""
    begun = time.monotonic()
    while is_serving(service) != serving:
        assert time.monotonic() - begun < within_s
        time.sleep(0.02)
    return time.monotonic() - begun


def outcome(service: VllmRunning, seed: int) -> TandemError | None:
    try:
        list(service.stub.Generate(iter([start(max_tokens=900), text(seed)]), timeout=120))
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return None


def test_every_stream_gets_a_typed_error_and_the_engine_comes_back(service: VllmRunning) -> None:
    prompt = [start(max_tokens=16), text(*range(7, 40))]
    alone, _ = ask(service, *prompt, timeout=60)
    old = set(children(service.process.pid))
    with ThreadPoolExecutor(STREAMS) as callers:
        ended = [callers.submit(outcome, service, seed) for seed in range(STREAMS)]
        while service.metric("tandem_language_running") + service.metric("tandem_language_waiting") < STREAMS:
            time.sleep(0.02)
        os.kill(engine_core(service.process.pid), signal.SIGKILL)
        unready_s = until(service, serving=False, within_s=30)
        errors = [one.result() for one in ended]
    reasons = {error.reason if error else "answered" for error in errors}
    assert reasons == {"ENGINE_DEAD"}
    assert {error.code.name for error in errors if error} == {"UNAVAILABLE"}
    assert all(error and error.retry_after_s for error in errors)
    refused = outcome(service, 1)
    assert refused is not None
    assert refused.reason == "ENGINE_DEAD"
    back_s = until(service, serving=True, within_s=BACK_S)
    assert ask(service, *prompt, timeout=60)[0] == alone
    wait_until_gone(old & set(children(service.process.pid)) - set(children(service.process.pid)))
    print(f"{STREAMS} streams: not serving after {unready_s:.1f} s, back after {unready_s + back_s:.1f} s")


@pytest.mark.slow
def test_after_too_many_deaths_the_process_ends(service: VllmRunning) -> None:
    """Its supervisor, such as Kubernetes, then starts another."""
    for _ in range(3):
        os.kill(engine_core(service.process.pid), signal.SIGKILL)
        until(service, serving=False, within_s=30)
        until(service, serving=True, within_s=BACK_S)
    left = set(children(service.process.pid))
    os.kill(engine_core(service.process.pid), signal.SIGKILL)
    assert service.process.wait(60) != 0
    wait_until_gone(left)


@pytest.mark.slow
def test_no_process_of_vllm_outlives_the_service(service: VllmRunning) -> None:
    """Also not after a kill."""
    left = set(children(service.process.pid))
    assert len(left) >= 2
    service.process.kill()
    wait_until_gone(left, timeout_s=60)
