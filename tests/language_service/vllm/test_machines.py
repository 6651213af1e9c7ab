"""Two machines share one vLLM: here, two services on one machine."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.grpc_errors import from_rpc_error
from chassis.process import STOP_S
from tests import processes
from tests.language_service.process import ask, start, text
from tests.language_service.vllm.conftest import VllmRunning
from tests.language_service.vllm.models import STABLE
from tests.language_service.vllm.processes import children, wait_until_gone
from tests.language_service.vllm.test_exact import PROMPTS, expected, requests

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

END_S = 120


def flags(node_rank: int, master_port: int) -> list[str]:
    engine_args = {
        "enforce_eager": True,
        "block_size": 32,
        "disable_custom_all_reduce": True,
        "tensor_parallel_size": 2,
        "nnodes": 2,
        "node_rank": node_rank,
        "master_addr": "127.0.0.1",
        "master_port": master_port,
    }
    return ["--engine", "vllm", "--kv-cache-bytes", str(16 << 20), "--engine-args", json.dumps(engine_args)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def machines(models: Path) -> Iterator[tuple[VllmRunning, VllmRunning]]:
    """Yield leader and follower. Each waits for the other."""
    port = free_port()
    both = [processes.running(VllmRunning, models, "--tags", STABLE, *flags(rank, port)) for rank in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as starting:
        leader, follower = starting.map(stack.enter_context, both)
        yield leader, follower


def is_serving(service: VllmRunning) -> bool:
    answer = health_pb2_grpc.HealthStub(service.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_both_machines_together_give_the_answers_of_transformers(models: Path, theirs: Any) -> None:
    with machines(models) as (leader, follower):
        for service in (leader, follower):
            workers = [name for name in children(service.process.pid).values() if name.startswith("VLLM::Worker")]
            assert len(workers) == 1
            assert is_serving(service)
        for name, parts in PROMPTS.items():
            found, _ = ask(leader, *requests(leader, parts), timeout=120)
            assert found == expected(theirs, parts), name
        left = set(children(follower.process.pid))
        follower.process.send_signal(signal.SIGTERM)
        assert follower.process.wait(END_S) == 0
        wait_until_gone(left)


@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_machine_that_waits_for_the_other_stops_at_once(models: Path, node_rank: int) -> None:
    """The wait is vLLM's own, in processes below ours."""
    command = VllmRunning.command(models, "--tags", STABLE, *flags(node_rank, free_port()))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        deadline = time.monotonic() + END_S
        while not any(name.startswith("VLLM::Worker") for name in children(process.pid).values()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        left = set(children(process.pid))
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=END_S)
        assert time.monotonic() - started < STOP_S / 2  # most of it is the end of the interpreter
        assert process.returncode == 0
        assert '"stopped before it was ready"' in log
        wait_until_gone(left)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_without_its_follower_a_leader_fails_with_a_typed_error_and_ends(models: Path) -> None:
    """Its supervisor then starts all machines together."""
    with machines(models) as (leader, follower):
        os.killpg(follower.process.pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            list(leader.stub.Generate(iter([start(max_tokens=900), text(5)]), timeout=END_S))
        assert from_rpc_error(caught.value).reason == "ENGINE_DEAD"
        assert leader.process.wait(END_S) == 1


def test_without_its_leader_a_follower_ends(models: Path) -> None:
    with machines(models) as (leader, follower):
        left = set(children(follower.process.pid))
        os.killpg(leader.process.pid, signal.SIGKILL)
        assert follower.process.wait(END_S) == 1
        wait_until_gone(left)
