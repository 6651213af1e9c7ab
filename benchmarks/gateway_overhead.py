"""What the gateway adds to calling a stage directly: to the first token of a request, and to every token after it.

The language stage answers by the clock (`benchmarks.tools.paced_language`), faster than people read, and stamps each token
when it is sent; so the figures are the gateway's and the wire's, and no decoder's. Three paths are asked in turn: the
stage itself, a relay that passes bytes on unread (`benchmarks.tools.bare_relay`, the limit of whatever stands in between and
speaks gRPC here), and the gateway. What is added is the difference of the same percentile of two paths. Client, stage
and what stands in between share this machine's cores, so the processor time of a token says how far a gateway goes.
"""

import asyncio
import gc
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools import bare_relay
from benchmarks.tools.paced_language import since_ms
from benchmarks.tools.processes import address_of, running
from benchmarks.tools.report import Report, parse_arguments
from chassis.channels import open_channel
from checkpoint.store import ModelStore
from tandem.stack import ServiceProcess
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, language_pb2, language_pb2_grpc, sampling_pb2

STREAMS = (1, 16, 64, 256)
AIM_STREAMS, AIM_REQUEST_MS, AIM_TOKEN_MS = 16, 2.0, 1.0
TOKENS = 10  # of an answer
DIRECT, RELAY, GATEWAY = "direct", "relay", "gateway"
PATHS = (DIRECT, RELAY, GATEWAY)


@dataclass(slots=True)
class Samples:
    """What was measured of all requests on one path at one number of streams."""

    first_token: list[float] = field(default_factory=list)  # from the call to its first token, milliseconds
    token: list[float] = field(default_factory=list)  # from the stage's hands to the client's, milliseconds
    processor_s: float = 0.0  # of what stands in between


Measured = dict[tuple[str, int], Samples]


class Paths:
    """The ways to ask the same question; a connection each."""

    def __init__(self, tag: str, channels: dict[str, Any]) -> None:
        sampling = sampling_pb2.SamplingOptions(max_tokens=TOKENS, num_logprobs=1, ignore_eos=True)
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="What is this?")])
        self._question = gateway_pb2.GatewayGenerateRequest(messages=[message], sampling=sampling)
        # What the gateway makes of the question is known to whoever calls the stage directly.
        self._start = language_pb2.GenerateRequest(start=language_pb2.GenerateStart(tag=tag, sampling=sampling))
        self._language: Any = language_pb2_grpc.LanguageServiceStub(channels[DIRECT])
        self._relay: Any = channels[RELAY].unary_stream(
            bare_relay.METHOD,
            request_serializer=language_pb2.GenerateRequest.SerializeToString,
            response_deserializer=language_pb2.GenerateResponse.FromString,
        )
        self._gateway: Any = gateway_pb2_grpc.GatewayStub(channels[GATEWAY])
        self._ways = {DIRECT: self._directly, RELAY: self._relayed, GATEWAY: self._through_gateway}

    async def ask(self, path: str, samples: Samples) -> None:
        """Ask once and note what it took."""
        started = time.perf_counter()
        is_first = True
        async for position in self._ways[path]():
            samples.token.append(since_ms(position.top[0].token_id))
            if is_first:
                samples.first_token.append(1000 * (time.perf_counter() - started))
                is_first = False

    async def _directly(self) -> AsyncIterator[sampling_pb2.PositionLogprobs]:
        call = self._language.Generate()
        await call.write(self._start)
        await call.write(bare_relay.PROMPT)
        await call.done_writing()
        while response := await call.read():
            for position in response.tokens.logprobs:
                yield position

    async def _relayed(self) -> AsyncIterator[sampling_pb2.PositionLogprobs]:
        async for response in self._relay(self._start):
            for position in response.tokens.logprobs:
                yield position

    async def _through_gateway(self) -> AsyncIterator[sampling_pb2.PositionLogprobs]:
        async for response in self._gateway.Generate(self._question):
            for position in response.delta.logprobs:
                yield position


async def measure(tag: str, services: dict[str, ServiceProcess], rounds: int) -> Measured:
    """Return the samples by path and number of streams, taken in turn so that a drifting machine is fair to all."""
    samples = {(path, streams): Samples() for streams in STREAMS for path in PATHS}
    async with AsyncExitStack() as stack:
        channels = {
            path: await stack.enter_async_context(open_channel(address_of(service)))
            for path, service in services.items()
        }
        paths = Paths(tag, channels)
        for path in PATHS:  # connections, and code that is read from disk when it first runs
            await asyncio.gather(*(paths.ask(path, Samples()) for _ in range(max(STREAMS))))
        gc.collect()
        gc.freeze()  # else the client's own collector holds everything up for tens of milliseconds now and then
        with Progress() as progress:
            task = progress.add_task("asking", total=rounds * len(samples))
            for number in range(rounds):
                for (path, streams), taken in samples.items():
                    moments = random.Random(number)  # the same on all paths
                    before_s = processor_s(services[path].pid)
                    await asyncio.gather(*(_ask_later(paths, path, taken, moments.random()) for _ in range(streams)))
                    taken.processor_s += processor_s(services[path].pid) - before_s
                    progress.advance(task)
    return samples


async def _ask_later(paths: Paths, path: str, taken: Samples, delay_s: float) -> None:
    """Ask at a moment of its own: people do not press return together, and all first tokens at once are a queue."""
    await asyncio.sleep(delay_s)
    await paths.ask(path, taken)


def processor_s(pid: int) -> float:
    """Return the processor time a process has taken, all threads together, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def add_figures(report: Report, samples: Measured) -> dict[str, list[float]]:
    """Put the differences into the table; return the p99 by curve of the plot."""
    curves: dict[str, list[float]] = {}
    for streams in STREAMS:
        for kind, attribute, aim_ms in (
            ("request", "first_token", AIM_REQUEST_MS),
            ("token", "token", AIM_TOKEN_MS),
        ):
            for percentile in (50, 99):
                ms = {
                    path: float(np.percentile(getattr(samples[path, streams], attribute), percentile)) for path in PATHS
                }
                report.details[f"{streams}/{kind}/p{percentile}"] = ms
                for path in (RELAY, GATEWAY):
                    added = ms[path] - ms[DIRECT]
                    has_aim = path == GATEWAY and streams == AIM_STREAMS and percentile == 99
                    report.add(
                        f"{streams} streams: added to a {kind} by the {path}, p{percentile}",
                        added,
                        "ms",
                        aim=f"at most {aim_ms:g} ms" if has_aim else "",
                        met=added <= aim_ms if has_aim else None,
                    )
                    if percentile == 99:
                        curves.setdefault(f"{path}, to a {kind}", []).append(added)
        for path in (RELAY, GATEWAY):
            taken = samples[path, streams]
            per_token_us = 1e6 * taken.processor_s / len(taken.token)
            report.add(f"{streams} streams: processor time of the {path}", per_token_us, "us/token")
    return curves


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "What the gateway adds to calling a stage directly.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "the model store"},
        release={"default": "", "help": "tag of the release; the newest of the store where left out"},
        pace_ms={"type": float, "default": 100.0, "help": "time between two tokens of a stream, milliseconds"},
    )
    tag = options.release or ModelStore(options.models).tags()[-1]
    models = ["--models", str(options.models)]
    with running(
        "benchmarks.tools.paced_language", [*models, "--tag", tag, "--pace-ms", str(options.pace_ms)]
    ) as language:
        to_language = ["--language", address_of(language)]
        gateway_flags = [*models, "--release", tag, *to_language, "--max-running", "1024"]
        with running("benchmarks.tools.bare_relay", to_language) as relay, running("gateway", gateway_flags) as gateway:
            services = {DIRECT: language, RELAY: relay, GATEWAY: gateway}
            samples = uvloop.run(measure(tag, services, 1 if options.quick else 5))
    report = Report("gateway_overhead", f"What the gateway adds, one token a stream every {options.pace_ms:g} ms")
    curves = add_figures(report, samples)

    def plot(axes: Axes) -> None:
        for name, values in curves.items():
            axes.plot(STREAMS, values, marker="o", label=f"added by the {name}, p99")
        axes.axhline(AIM_REQUEST_MS, linestyle=":", color="gray")
        axes.axhline(AIM_TOKEN_MS, linestyle=":", color="gray")
        axes.set(xlabel="streams at once", ylabel="ms", xscale="log", yscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
