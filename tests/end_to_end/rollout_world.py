"""Real processes under load, for the tests of rollouts."""

import asyncio
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from chassis.channels import open_channel
from chassis.errors import TandemError
from chassis.grpc_errors import from_rpc_error
from tandem.stack.process import ServiceProcess
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, rollout_pb2, rollout_pb2_grpc, sampling_pb2
from tests.end_to_end.faulty_language import Fault

READY_S = 180.0
STREAMS = 50
CONVERSATIONS_PER_STREAM = 8  # routing keys that each stream uses in turn
STABLE, OTHER, EQUAL = "tiny-v1.0.0", "tiny-v1.1.0", "tiny-v1.0.1"  # the last one has the weights of the first
PROMOTED, ROLLED_BACK = rollout_pb2.ROLLOUT_PHASE_PROMOTED, rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK
RUNNING = rollout_pb2.ROLLOUT_PHASE_RUNNING


class World:
    """Real processes, all killed at the end. A context manager."""

    def __init__(self, models: Path, stable: str, *, vision_tags: str = "") -> None:
        """Serve `stable`, and `vision_tags` instead in the vision service."""
        self._models = models
        self._stable = stable
        self._vision_tags = vision_tags or stable
        self._changed = threading.Condition()
        self.services: dict[str, ServiceProcess] = {}
        self.logs: dict[str, list[str]] = {}

    def __enter__(self) -> "World":
        self._start("vision", "vision_service", self._stage_flags(self._vision_tags))
        self._start("language", "language_service", self._stage_flags(self._stable))
        self._wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services.values():
            service.kill()

    def add_language(self, name: str, tag: str, flags: Sequence[str], *, python: str) -> None:
        """Start another language service, in an environment of its own."""
        self._start(name, "language_service", [*self._stage_flags(tag), *flags], python=python)
        self._wait_until_ready()

    def plain_gateway(self, *languages: str, flags: Sequence[str] = ()) -> str:
        """Start a gateway in front of these language services."""
        stages = ["--vision", self.address("vision"), "--language", ",".join(map(self.address, languages))]
        self._start("gateway", "gateway", [*self._gateway_flags(), *stages, *flags])
        self._wait_until_ready()
        return self.address("gateway")

    def gateway(self, name: str = "gateway", *, fault: Fault = "none", tag: str = "", flags: Sequence[str] = ()) -> str:
        """Start a gateway and return its address.

        It reaches the language stage through a proxy that injects a fault.
        """
        upstream = ["--models", str(self._models), "--upstream", self.address("language")]
        self._start(f"{name}-language", "tests.end_to_end.faulty_language", [*upstream, "--fault", fault, "--tag", tag])
        self._wait_until_ready()
        stages = ["--vision", self.address("vision"), "--language", self.address(f"{name}-language")]
        self._start(name, "gateway", [*self._gateway_flags(), *stages, *flags])
        self._wait_until_ready()
        return self.address(name)

    def stop(self, name: str) -> None:
        """Kill a gateway and its proxy."""
        for one in (name, f"{name}-language"):
            self.services.pop(one).kill()

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.services[name].ready['port']}"

    def metric(self, name: str, metric: str) -> float:
        """Return the sum of a metric over its labels."""
        url = f"http://127.0.0.1:{self.services[name].ready['metrics_port']}/metrics"
        with urllib.request.urlopen(url) as page:
            lines = page.read().decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{metric} ", f"{metric}{{"))]
        assert values, f"{name} has no metric {metric}"
        return sum(values)

    def _stage_flags(self, tags: str) -> list[str]:
        return ["--models", str(self._models), "--tags", tags, "--precision", "float32", "--threads", "1"]

    def _gateway_flags(self) -> list[str]:
        return ["--models", str(self._models), "--release", self._stable, "--refresh-s", "0.5", "--max-running", "256"]

    def _start(self, name: str, module: str, flags: Sequence[str], *, python: str = sys.executable) -> None:
        def keep(service: str, line: str) -> None:
            self.logs.setdefault(service, []).append(line)

        common = ["--listen", "127.0.0.1:0", "--log-format", "json", "--drain-s", "2"]
        process = ServiceProcess(name, module, [*common, *flags], keep, self._changed, python=python)
        self.services[name] = process
        process.start()

    def _wait_until_ready(self) -> None:
        def ready() -> bool:
            for service in self.services.values():
                tail = "\n".join(self.logs.get(service.name, [])[-3:])
                assert service.exit_code is None, f"{service.name} stopped: {tail}"
            return all(service.ready for service in self.services.values())

        with self._changed:
            assert self._changed.wait_for(ready, timeout=READY_S), "not ready in time"


@dataclass(frozen=True, slots=True)
class Answered:
    """One request of the load."""

    key: str
    sent_at_s: float  # time.monotonic
    release: str  # language tag, empty for a failed request
    error: str  # reason, empty for an answered request


@dataclass
class Load:
    """The requests of all streams, which ask one by one."""

    answers: list[Answered] = field(default_factory=list)

    @property
    def failed(self) -> list[Answered]:
        return [one for one in self.answers if one.error]

    def num_on(self, release: str) -> int:
        return sum(one.release == release for one in self.answers)

    def sent_after(self, at_s: float) -> list[Answered]:
        """Return the ended requests that were sent after `at_s`."""
        return [one for one in self.answers if one.sent_at_s > at_s]

    def max_release_changes(self) -> int:
        """Return the most release changes of one conversation."""
        seen: dict[str, list[str]] = {}
        for one in sorted(self.answers, key=lambda one: one.sent_at_s):
            if one.release and seen.setdefault(one.key, [one.release])[-1] != one.release:
                seen[one.key].append(one.release)
        return max((len(releases) - 1 for releases in seen.values()), default=0)


def question(key: str, image: bytes | None, max_tokens: int = 6) -> gateway_pb2.GatewayGenerateRequest:
    parts = [gateway_pb2.Part(text=f"What is this, {key}?")]
    if image is not None:
        parts.insert(0, gateway_pb2.Part(image=gateway_pb2.Image(data=image)))
    return gateway_pb2.GatewayGenerateRequest(
        messages=[gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=parts)],
        # Sampled: the most likely tokens of random weights can be invisible ones in every answer.
        sampling=sampling_pb2.SamplingOptions(max_tokens=max_tokens, ignore_eos=True, temperature=1),
        routing_key=key,
    )


async def ask(stub: Any, request: gateway_pb2.GatewayGenerateRequest, begun: asyncio.Event | None = None) -> Answered:
    """Ask one question and read the whole answer.

    The first message of the answer sets `begun`.
    """
    sent_at_s = time.monotonic()
    release = ""
    try:
        async for response in stub.Generate(request, timeout=60):
            if begun is not None:
                begun.set()
            if response.HasField("finished"):
                release = response.finished.release.language_tag
    except grpc.RpcError as error:
        return Answered(request.routing_key, sent_at_s, "", from_rpc_error(error).reason)
    return Answered(request.routing_key, sent_at_s, release, "")


@asynccontextmanager
async def steady_load(addresses: Sequence[str], images: Sequence[bytes], streams: int = STREAMS) -> AsyncIterator[Load]:
    """Keep `streams` questions in flight for the block.

    They are spread over the gateways.
    """
    load, ending = Load(), asyncio.Event()

    async def stream(index: int, stub: Any) -> None:
        turn = 0
        while not ending.is_set():
            image = images[(index + turn) % len(images)] if turn % 2 else None
            key = f"conversation-{index}-{turn % CONVERSATIONS_PER_STREAM}"
            load.answers.append(await ask(stub, question(key, image)))
            if load.answers[-1].error:
                await asyncio.sleep(0.1)  # a killed gateway refuses thousands of calls per second
            turn += 1

    channels = [open_channel(address) for address in addresses]
    stubs = [gateway_pb2_grpc.GatewayStub(channel) for channel in channels]
    async with asyncio.TaskGroup() as tasks:
        for index in range(streams):
            tasks.create_task(stream(index, stubs[index % len(stubs)]))
        try:
            yield load
        finally:
            ending.set()
    for channel in channels:
        await channel.close(None)


class Operator:
    """The commands of an operator, at one gateway."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.stub: Any = rollout_pb2_grpc.RolloutsStub(self.channel)

    async def set(self, plan: rollout_pb2.RolloutPlan) -> rollout_pb2.Rollout:
        response: rollout_pb2.RolloutsSetResponse = await self.stub.Set(rollout_pb2.RolloutsSetRequest(plan=plan))
        return response.rollout

    async def get(self) -> rollout_pb2.Rollout:
        request = rollout_pb2.RolloutsGetRequest()
        response: rollout_pb2.RolloutsGetResponse = await self.stub.Get(request, timeout=10)
        return response.rollout

    async def wait_until(self, is_true: Callable[[rollout_pb2.Rollout], bool], within_s: float) -> rollout_pb2.Rollout:
        """Wait until `is_true` of the rollout, and return it."""
        deadline_s = time.monotonic() + within_s
        while not is_true(rollout := await self.get()):
            assert time.monotonic() < deadline_s, f"not within {within_s} s: {brief(rollout)}"
            await asyncio.sleep(0.1)
        return rollout


def brief(rollout: rollout_pb2.Rollout) -> str:
    """Describe a rollout in one line."""
    phase = rollout_pb2.RolloutPhase.Name(rollout.phase)
    seen = f"{rollout.stable.requests} stable and {rollout.canary.requests} canary requests"
    open_ones = [one for one in rollout.findings if one.verdict == rollout_pb2.ROLLOUT_VERDICT_OPEN]
    why = ", ".join(f"{rollout_pb2.RolloutMetric.Name(one.metric)} p={one.p_within:.2g}" for one in open_ones)
    last = rollout.changes[-1].reason if rollout.changes else ""
    return f"{phase}, step {rollout.step}, {seen}, open: {why}; last: {last}"


async def error_of(call: Any) -> TandemError:
    """Return the error of a call."""
    try:
        await call
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call succeeded")


def plan(
    canary: str,
    weights: Sequence[float],
    *,
    seconds: float = 2,
    requests: int = 0,
    min_requests: int = 40,
    overdue_s: float = 30,
) -> rollout_pb2.RolloutPlan:
    """Return a plan whose guard needs few requests."""
    steps = [
        rollout_pb2.RolloutStep(
            weight_percent=w, seconds=0 if w == 100 else seconds, requests=0 if w == 100 else requests
        )
        for w in weights
    ]
    guard = rollout_pb2.RolloutGuard(
        max_error_rate_increase=0.03,
        max_empty_rate_increase=0.05,
        max_first_token_ratio=1.8,
        max_inter_token_ratio=2.5,
        min_requests=min_requests,
        overdue_s=overdue_s,
    )
    return rollout_pb2.RolloutPlan(canary=canary, steps=steps, guard=guard)
