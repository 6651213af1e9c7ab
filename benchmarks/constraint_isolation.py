"""Streams of tokens while costly constraints keep arriving.

A language service with random weights answers long streams, two of them under cheap constraints. The time between two
tokens of a stream is measured in turn while nothing arrives, requests without constraints, cheap ones, and costly ones.
The costly ones are of several kinds: with a dear first mask, dear to compile, and dear later in the answer. At the end
more of them arrive, without streams, and the memory of the service and its processes is measured.
"""

import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.models import full_size_encoder
from benchmarks.tools.processes import address_of, running
from benchmarks.tools.report import Report, parse_arguments
from chassis.channels import open_channel
from checkpoint.initial import create_checkpoint
from tandem.v1 import language_pb2, language_pb2_grpc, sampling_pb2

TAG = "constraints-v1.0.0"
STREAMS = 8
CHEAP = ({"regex": "[0-9]{4000}"}, {"json_schema": json.dumps({"type": "array", "items": {"type": "integer"}})})
ARRIVALS_PER_S = 5.0
AIM_PERCENT = 10.0
X = 93  # token of the letter x
WITHOUT, PLAINLY = "nothing arrives", "requests without constraints arrive"
CHEAPLY, WITH = "cheap constraints arrive", "costly constraints arrive"


@dataclass(slots=True)
class Measured:
    """What the streams and the costly requests saw."""

    gaps_ms: dict[str, list[list[float]]] = field(
        default_factory=lambda: {WITHOUT: [], PLAINLY: [], CHEAPLY: [], WITH: []}
    )  # of each round
    outcomes: Counter[str] = field(default_factory=Counter)  # of the costly requests, by reason
    ends_s: list[float] = field(default_factory=list)  # time until a costly request failed
    memory_mib: dict[int, float] = field(default_factory=dict)  # after so many costly requests


def costly(number: int) -> sampling_pb2.SamplingOptions:
    """Return a constraint that no other request has."""
    dear = f"(a{{1000}}){{1000}}q{{{1000 + number}}}"
    patterns = [{"type": "string", "pattern": f"(a|b)*a(a|b){{{length}}}"} for length in range(1, 40)]
    kinds: list[dict[str, Any]] = [
        {"regex": dear},
        {"regex": "x{3}" + dear, "logit_bias": {X: 100.0}},
        {"json_schema": json.dumps({"allOf": patterns, "title": str(number)})},
        {"regex": f"((a{{0,100}}){{0,100}}){{0,{1000 + number}}}b"},
        {"grammar": f"start: /{dear}/ | /(b{{900}}){{900}}/"},
    ]
    return sampling_pb2.SamplingOptions(max_tokens=50, **kinds[number % len(kinds)])


def cheap(number: int) -> sampling_pb2.SamplingOptions:
    """Return a cheap constraint that no other request has."""
    return sampling_pb2.SamplingOptions(max_tokens=3, regex=f"[a-z]{{{1 + number}}}")


def plain() -> sampling_pb2.SamplingOptions:
    """Return options without a constraint."""
    return sampling_pb2.SamplingOptions(max_tokens=3, ignore_eos=True)


class Service:
    """A running language service."""

    def __init__(self, channel: grpc.aio.Channel, pid: int) -> None:
        self._stub: Any = language_pb2_grpc.LanguageServiceStub(channel)
        self._pid = pid

    async def tokens(self, sampling: sampling_pb2.SamplingOptions, num_prompt: int = 1) -> AsyncGenerator[int, None]:
        """Yield the number of tokens of each message."""
        start = language_pb2.GenerateStart(tag=TAG, sampling=sampling)
        text = language_pb2.TextSegment(token_ids=range(20, 20 + num_prompt))
        requests = [language_pb2.GenerateRequest(start=start), language_pb2.GenerateRequest(text=text)]
        call = self._stub.Generate(iter(requests))
        try:
            async for response in call:
                yield len(response.tokens.token_ids)
        finally:
            call.cancel()

    def memory_mib(self) -> float:
        """Return the memory of the service and all its processes."""
        pids = [self._pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):  # the thread has just ended
                    pids += map(int, children.read_text().split())
        return sum(map(_proportional_kib, pids)) / 1024


def _proportional_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


async def stream(service: Service, options: dict[str, Any], gaps_ms: list[float], ends_s: float) -> None:
    """Read answers, and note the time between tokens."""
    while time.perf_counter() < ends_s:
        sampling = sampling_pb2.SamplingOptions(max_tokens=1500, ignore_eos=True, temperature=1.0, **options)
        last_s = None
        async with aclosing(service.tokens(sampling, num_prompt=64)) as answer:
            async for count in answer:
                now_s = time.perf_counter()
                if last_s is not None and count:
                    gaps_ms.append(1000 * (now_s - last_s))
                if count:
                    last_s = now_s
                if now_s > ends_s:
                    break


async def send_costly(service: Service, number: int, measured: Measured) -> None:
    """Send one costly constraint and note how it ends."""
    began_s = time.perf_counter()
    try:
        async for _ in service.tokens(costly(number)):
            pass
        reason = "answered"
    except grpc.aio.AioRpcError as error:
        reason = error.code().name
    measured.outcomes[reason] += 1
    measured.ends_s.append(time.perf_counter() - began_s)


async def send(service: Service, sampling: sampling_pb2.SamplingOptions) -> None:
    """Send one request and read its answer."""
    async for _ in service.tokens(sampling):
        pass


@asynccontextmanager
async def arriving(send: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Let constraints arrive while the block runs."""

    async def arrive() -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(send())
                await asyncio.sleep(1 / ARRIVALS_PER_S)

    arrivals = asyncio.create_task(arrive())
    try:
        yield
    finally:
        arrivals.cancel()  # and with it those in flight
        await asyncio.wait([arrivals])


async def one_round(service: Service, seconds: float, gaps_ms: list[float]) -> None:
    """Run all streams for a while."""
    options: list[dict[str, Any]] = [*CHEAP, *({} for _ in range(STREAMS - len(CHEAP)))]
    ends_s = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as tasks:
        for one in options:
            tasks.create_task(stream(service, one, gaps_ms, ends_s))


async def measure(address: str, pid: int, *, rounds: int, seconds: float, num_costly: int) -> Measured:
    """Measure all kinds in turn.

    So a change of the machine's speed affects all of them.
    """
    measured, numbers = Measured(), itertools.count()
    async with open_channel(address) as channel:
        service = Service(channel, pid)
        await one_round(service, 2, [])  # warm up
        measured.memory_mib[0] = service.memory_mib()
        with Progress() as progress:
            task = progress.add_task("streaming", total=len(measured.gaps_ms) * rounds)
            for _ in range(rounds):
                for kind, gaps in measured.gaps_ms.items():
                    gaps.append([])
                    async with AsyncExitStack() as stack:
                        if kind == PLAINLY:
                            await stack.enter_async_context(arriving(lambda: send(service, plain())))
                        if kind == CHEAPLY:
                            await stack.enter_async_context(arriving(lambda: send(service, cheap(next(numbers)))))
                        if kind == WITH:
                            await stack.enter_async_context(
                                arriving(lambda: send_costly(service, next(numbers), measured))
                            )
                        await one_round(service, seconds, gaps[-1])
                    progress.advance(task)
            measured.memory_mib[len(measured.ends_s)] = service.memory_mib()
            task = progress.add_task("more constraints", total=num_costly)
            for _ in range(0, num_costly, 4):
                await asyncio.gather(*(send_costly(service, next(numbers), measured) for _ in range(4)))
                progress.advance(task, 4)
        measured.memory_mib[len(measured.ends_s)] = service.memory_mib()
    return measured


def median_change(gaps_ms: dict[str, list[list[float]]], before: str, after: str, percent: int) -> float:
    """Return the change of a percentile between two kinds, %."""
    pairs = zip(gaps_ms[before], gaps_ms[after], strict=True)
    return float(
        np.median([100 * (np.percentile(new, percent) / np.percentile(old, percent) - 1) for old, new in pairs])
    )


def publish(measured: Measured, json_path: Path | None) -> None:
    """Print the table and write the files."""
    report = Report("constraint_isolation", "Time between tokens while costly constraints arrive")
    percentiles = {
        (kind, percent): float(np.percentile(np.concatenate(gaps), percent))
        for kind, gaps in measured.gaps_ms.items()
        for percent in (50, 99)
    }
    for (kind, percent), value in percentiles.items():
        report.add(f"time between tokens p{percent}, {kind}", value, "ms")
    for kind in (PLAINLY, CHEAPLY, WITH):
        for percent in (50, 99):
            change = median_change(measured.gaps_ms, WITHOUT, kind, percent)
            is_aim = (kind, percent) == (WITH, 99)
            aim, met = (f"below {AIM_PERCENT:g} %", change < AIM_PERCENT) if is_aim else ("", None)
            report.add(f"change of p{percent}, {kind}", change, "%", aim=aim, met=met)
    title = "change of p99, costly constraints instead of requests without"
    report.add(title, median_change(measured.gaps_ms, PLAINLY, WITH, 99), "%")
    for reason, count in measured.outcomes.most_common():
        report.add(f"costly constraints: {reason}", count, "")
    report.add("costly constraints: time to their end, p50", float(np.median(measured.ends_s)), "s")
    for count, mib in measured.memory_mib.items():
        report.add(f"memory after {count} costly constraints", mib, "MiB")
    report.details = {
        "gaps_ms_by_percent": {
            kind: [np.percentile(one, range(101)).round(2).tolist() for one in gaps]
            for kind, gaps in measured.gaps_ms.items()
        },
        "ends_s": measured.ends_s,
    }

    def plot(axes: Axes) -> None:
        for kind, gaps in measured.gaps_ms.items():
            ordered = np.sort(np.concatenate(gaps))
            axes.plot(ordered, np.linspace(0, 1, len(ordered)), label=kind)
        axes.set(xlabel="time between tokens, ms", ylabel="share of the tokens", xscale="log")
        axes.legend()

    report.publish(plot, json_path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments("Measure streams while costly constraints arrive.", arguments)
    limits = {"rounds": 2, "seconds": 3.0, "num_costly": 8} if options.quick else {}
    decoder = full_size_encoder().language.model_copy(update={"width": 1024, "num_layers": 16, "mlp_width": 3072})
    with tempfile.TemporaryDirectory() as folder:
        config = full_size_encoder().model_copy(update={"language": decoder})
        create_checkpoint(Path(folder), TAG, config, dtype=torch.bfloat16)
        flags = ["--models", folder, "--tags", TAG, "--kv-cache-bytes", str(2**29)]
        with running("language_service", flags) as service:
            settings = {"rounds": 6, "seconds": 12.0, "num_costly": 40, **limits}
            publish(asyncio.run(measure(address_of(service), service.pid, **settings)), options.json)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
