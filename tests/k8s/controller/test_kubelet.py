"""The test controller runs pods by the rules of the kubelet."""

import asyncio
import signal
from collections.abc import Sequence
from typing import Any

import pytest

from tests.k8s import kubelet as module
from tests.k8s.kubelet import Kubelet
from tests.k8s.objects import Object, Pod
from tests.k8s.probes import ProbeCounter, with_port_numbers


class FakeRuntime:
    """Containers that end on a signal or by a test."""

    def __init__(self, *, ignores_sigterm: bool = False) -> None:
        self.calls: list[str] = []
        self.missing: str = ""
        self._ignores_sigterm = ignores_sigterm
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def exit(self, code: int) -> None:
        if not self._exited.done():
            self._exited.set_result(code)

    async def start(self, pod: Pod) -> None:
        if self.missing:
            raise LookupError(self.missing)
        self.calls.append("start")
        pod.ip = "198.18.0.2"

    async def start_container(self, pod: Pod, name: str) -> None:
        self.calls.append("restart")
        self._exited = asyncio.get_running_loop().create_future()

    async def wait(self, pod: Pod, name: str) -> int:
        return await asyncio.shield(self._exited)

    async def signal(self, pod: Pod, name: str, number: int) -> None:
        self.calls.append(signal.Signals(number).name)
        if number == signal.SIGKILL or not self._ignores_sigterm:
            self.exit(128 + number)

    async def log_tail(self, pod: Pod, name: str) -> str:
        return "why it ended"

    async def exec(self, pod: Pod, name: str, command: Sequence[str]) -> str:
        raise RuntimeError("exit code 1")

    async def remove(self, pod: Pod) -> None:
        self.calls.append("remove")


class Health:
    """Answers probes by name of the service."""

    def __init__(self, **healthy: bool) -> None:
        self.healthy = healthy

    async def check(self, probe: Object, ip: str, timeout_s: float) -> bool:
        return self.healthy[probe["grpc"]["service"]]


def grpc_probe(service: str, **options: Any) -> Object:
    return {"grpc": {"port": 1, "service": service}, "periodSeconds": 0.01, "failureThreshold": 2, **options}


def one_pod(**options: Any) -> Pod:
    spec = {"terminationGracePeriodSeconds": options.pop("grace", 5)}
    return Pod("a", "tandem", {}, {**spec, "containers": [{"name": "c", **options}]})


async def until(is_true: Any) -> None:
    async with asyncio.timeout(5):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_readiness_waits_for_the_startup_probe() -> None:
    health = Health(start=False, ready=True)
    pod = one_pod(startupProbe=grpc_probe("start", failureThreshold=1000), readinessProbe=grpc_probe("ready"))
    running = asyncio.create_task(Kubelet(pod, FakeRuntime(), lambda: None, health.check).run())
    await asyncio.sleep(0.05)
    assert not pod.ready
    health.healthy["start"] = True
    await until(lambda: pod.ready)
    health.healthy["ready"] = False
    await until(lambda: not pod.ready)
    assert pod.restarts == 0
    running.cancel()


@pytest.mark.parametrize("kind", ["startupProbe", "livenessProbe"])
async def test_a_failed_probe_ends_the_container_gracefully_and_restarts_it(kind: str) -> None:
    runtime, health = FakeRuntime(), Health(probe=False)
    pod = one_pod(**{kind: grpc_probe("probe")})
    running = asyncio.create_task(Kubelet(pod, runtime, lambda: None, health.check).run())
    await until(lambda: "restart" in runtime.calls)
    assert runtime.calls[:3] == ["start", "SIGTERM", "restart"]
    running.cancel()


async def test_a_container_that_ends_is_restarted_at_once_then_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 30)
    runtime = FakeRuntime()
    pod = one_pod(terminationMessagePolicy="FallbackToLogsOnError")
    running = asyncio.create_task(Kubelet(pod, runtime, lambda: None).run())
    await until(lambda: pod.ready)
    runtime.exit(1)
    await until(lambda: pod.restarts == 1 and pod.ready)
    assert pod.termination_message == "why it ended"
    runtime.exit(1)
    await until(lambda: not pod.ready)
    await asyncio.sleep(0.05)
    assert pod.restarts == 1
    running.cancel()


async def test_the_end_is_prestop_then_sigterm() -> None:
    runtime = FakeRuntime()
    pod = one_pod(lifecycle={"preStop": {"sleep": {"seconds": 0.1}}})
    kubelet = Kubelet(pod, runtime, lambda: None)
    running = asyncio.create_task(kubelet.run())
    await until(lambda: pod.ready)
    pod.deleting = True
    ending = asyncio.create_task(kubelet.terminate())
    await asyncio.sleep(0.05)
    assert runtime.calls == ["start"]
    await ending
    await running
    assert runtime.calls == ["start", "SIGTERM", "remove"]


async def test_sigkill_comes_after_the_grace() -> None:
    runtime = FakeRuntime(ignores_sigterm=True)
    pod = one_pod(grace=0.05)
    kubelet = Kubelet(pod, runtime, lambda: None)
    running = asyncio.create_task(kubelet.run())
    await until(lambda: pod.ready)
    pod.deleting = True
    await kubelet.terminate()
    await running
    assert runtime.calls == ["start", "SIGTERM", "SIGKILL", "remove"]


async def test_a_missing_object_delays_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime()
    runtime.missing = 'secret "tls" not found'
    pod = one_pod()
    running = asyncio.create_task(Kubelet(pod, runtime, lambda: None).run())
    await until(lambda: pod.events)
    assert pod.events[0] == 'CreateContainerConfigError: secret "tls" not found'
    runtime.missing = ""
    await until(lambda: pod.ready)
    running.cancel()


def test_thresholds_count_results_in_a_row() -> None:
    counter = ProbeCounter({"failureThreshold": 2})
    assert [counter.add(ok) for ok in (False, True, False, False)] == ["open", "success", "open", "failure"]


def test_named_ports_become_numbers() -> None:
    container = {"ports": [{"name": "redis", "containerPort": 6379}]}
    assert with_port_numbers({"tcpSocket": {"port": "redis"}}, container) == {"tcpSocket": {"port": 6379}}
