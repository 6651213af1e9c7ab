"""Latency and tokens a second that the HTTP door costs.

Two paths take turns within one run: gRPC to the gateway, and HTTP to a door in front of the same gateway. Both clients
read as little as they can.

- First token: a fake language service answers at a fixed pace (`benchmarks.tools.paced_language`), so the figures do
  not depend on a decoder. The added latency is the difference between the same percentiles of both paths.
- Tokens a second: the demo model decodes as fast as it can. Stages, gateway, door and client share the machine's cores,
  so a door that works more leaves the decoder less.
"""

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.http_streams import HttpStreams
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.processes import address_of, cpu_s, running
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from chassis.channels import open_channel
from chassis.network import split_address
from tandem.stack import Stack, StackConfig
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, sampling_pb2

GRPC, HTTP = "gRPC", "HTTP"
PATHS = (GRPC, HTTP)
STREAMS = (1, 16, 64)
AIM_STREAMS, AIM_P50_MS, AIM_P99_MS = 16, 1.5, 5.0
LOAD_STREAMS, AIM_LOSS = 64, 20.0  # percent
PACED_TOKENS, LOAD_TOKENS = 10, 48
QUESTION = "What is this?"


class Paths:
    """Sends the same question on both paths."""

    def __init__(self, channel: Any, door: HttpStreams, tokens: int) -> None:
        sampling = sampling_pb2.SamplingOptions(max_tokens=tokens, ignore_eos=True)
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text=QUESTION)])
        self._question = gateway_pb2.GatewayGenerateRequest(messages=[message], sampling=sampling)
        self._body = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        self._gateway: Any = gateway_pb2_grpc.GatewayStub(channel)
        self._door = door

    async def first_token_s(self, path: str) -> float:
        """Return the time to the first token of an answer."""
        if path == HTTP:
            return await self._door.first_token_s(self._body)
        started, first_s = time.perf_counter(), 0.0
        async for _ in self._gateway.Generate(self._question):
            first_s = first_s or time.perf_counter() - started
        return first_s


@dataclass(slots=True)
class Measured:
    """Samples of one run."""

    first_ms: dict[tuple[str, int], list[float]] = field(default_factory=dict)  # by path and number of streams
    tokens_per_s: dict[str, list[float]] = field(default_factory=dict)  # by path, one a round
    door_cpu_us: list[float] = field(default_factory=list)  # CPU time of the door per token, one a round


async def open_paths(stack: AsyncExitStack, gateway: str, door: str, tokens: int) -> Paths:
    """Return the paths, closed with `stack`."""
    channel = await stack.enter_async_context(open_channel(gateway))
    streams = HttpStreams(*split_address(door))
    stack.callback(streams.close)
    return Paths(channel, streams, tokens)


async def measure_first_tokens(gateway: str, door: str, rounds: int, measured: Measured) -> None:
    """Measure the time to the first token."""
    async with AsyncExitStack() as stack:
        paths = await open_paths(stack, gateway, door, PACED_TOKENS)
        for path in PATHS:  # open connections and load code
            await asyncio.gather(*(paths.first_token_s(path) for _ in range(max(STREAMS))))
        gc.collect()
        gc.freeze()  # otherwise the client's garbage collector pauses for tens of milliseconds at times
        with Progress() as progress:
            task = progress.add_task("first tokens", total=rounds * len(STREAMS) * len(PATHS))
            for number in range(rounds):
                for streams in STREAMS:
                    for path in PATHS if number % 2 else reversed(PATHS):
                        rng = random.Random(number)  # equal delays on both paths
                        asked = (_ask_later(paths, path, rng.random()) for _ in range(streams))
                        seconds = await asyncio.gather(*asked)
                        measured.first_ms.setdefault((path, streams), []).extend(1000 * one for one in seconds)
                        progress.advance(task)


async def _ask_later(paths: Paths, path: str, delay_s: float) -> float:
    """Ask after a delay, so that requests do not queue."""
    await asyncio.sleep(delay_s)
    return await paths.first_token_s(path)


async def measure_load(gateway: str, door: str, door_pid: int, rounds: int, measured: Measured) -> None:
    """Measure tokens a second at full load."""
    async with AsyncExitStack() as stack:
        paths = await open_paths(stack, gateway, door, LOAD_TOKENS)
        for path in PATHS:
            await asyncio.gather(*(paths.first_token_s(path) for _ in range(LOAD_STREAMS)))
        with Progress() as progress:
            task = progress.add_task("tokens a second", total=rounds * len(PATHS))
            for number in range(rounds):
                for path in PATHS if number % 2 else reversed(PATHS):
                    started, cpu_before_s = time.perf_counter(), cpu_s(door_pid)
                    await asyncio.gather(*(_ask_in_turn(paths, path) for _ in range(LOAD_STREAMS)))
                    tokens = 2 * LOAD_STREAMS * LOAD_TOKENS
                    measured.tokens_per_s.setdefault(path, []).append(tokens / (time.perf_counter() - started))
                    if path == HTTP:
                        measured.door_cpu_us.append(1e6 * (cpu_s(door_pid) - cpu_before_s) / tokens)
                    progress.advance(task)


async def _ask_in_turn(paths: Paths, path: str) -> None:
    for _ in range(2):
        await paths.first_token_s(path)


def add_figures(report: Report, measured: Measured) -> None:
    """Add differences and ratios of the paths to the report."""
    for streams in STREAMS:
        for percentile, aim_ms in ((50, AIM_P50_MS), (99, AIM_P99_MS)):
            ms = {path: float(np.percentile(measured.first_ms[path, streams], percentile)) for path in PATHS}
            report.details[f"first token/{streams}/p{percentile}"] = ms
            added, has_aim = ms[HTTP] - ms[GRPC], streams == AIM_STREAMS
            report.add(
                f"{streams} streams: added to the first token, p{percentile}",
                added,
                "ms",
                aim=f"at most {aim_ms:g} ms" if has_aim else "",
                met=added <= aim_ms if has_aim else None,
            )
    report.details["tokens a second"] = measured.tokens_per_s
    for path in PATHS:
        report.add(
            f"{LOAD_STREAMS} streams: tokens by {path}", statistics.median(measured.tokens_per_s[path]), "tokens/s"
        )
    loss = 100 * (1 - median_ratio(measured.tokens_per_s[HTTP], measured.tokens_per_s[GRPC]))
    report.add(
        f"{LOAD_STREAMS} streams: tokens lost by HTTP",
        loss,
        "%",
        aim=f"at most {AIM_LOSS:g} %",
        met=loss <= AIM_LOSS,
    )
    report.add(f"{LOAD_STREAMS} streams: CPU time of the door", statistics.median(measured.door_cpu_us), "us/token")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure what the HTTP door costs over gRPC.",
        arguments,
        **RELEASE_OPTIONS,
        pace_ms={
            "type": float,
            "default": 100.0,
            "help": "time between the tokens of a stream, milliseconds (default: 100)",
        },
    )
    tag, measured = chosen_release(options), Measured()
    models = ["--models", str(options.models)]
    paced = [*models, "--tag", tag, "--pace-ms", str(options.pace_ms)]
    with running("benchmarks.tools.paced_language", paced) as language:
        flags = [*models, "--release", tag, "--language", address_of(language), "--max-running", "1024"]
        with running("gateway", flags) as gateway, running("http_gateway", ["--gateway", address_of(gateway)]) as door:
            rounds = 2 if options.quick else 30
            uvloop.run(measure_first_tokens(address_of(gateway), address_of(door), rounds, measured))
    with Stack(StackConfig(models=options.models, release=tag, http_port=0, drain_s=1)) as stack:
        rounds = 2 if options.quick else 15
        door_pid = stack.pids["http"]
        uvloop.run(measure_load(stack.address, stack.address_of("http"), door_pid, rounds, measured))
    report = Report("http_overhead", "Latency and throughput that the HTTP door costs over gRPC")
    add_figures(report, measured)

    def plot(axes: Axes) -> None:
        for path in PATHS:
            ms = np.sort(measured.first_ms[path, AIM_STREAMS])
            axes.plot(ms, np.linspace(0, 100, len(ms)), label=path)
        axes.set(xlabel=f"time to the first token at {AIM_STREAMS} streams, ms", ylabel="percent of requests")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
