"""Latency and CPU time added by the gateway.

A fake language service sends tokens at a fixed pace and marks each with its send time
(`benchmarks.tools.paced_language`). So the figures do not depend on a decoder. Three paths take turns: a direct call of
the stage, a minimal relay of bytes (`benchmarks.tools.bare_relay`, the lower limit for a gRPC process in between), and
the gateway. The added latency is the difference between the same percentiles of two paths. Client, services and gateway
share the machine's cores. The CPU time per token tells how many streams a gateway can serve.

With `--workers N`, a gateway of N processes takes turns with one of a single process, at full speed.
"""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools import bare_relay
from benchmarks.tools.gateway_throughput import add_throughput, measure_throughput
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.paced_language import since_ms
from benchmarks.tools.processes import address_of, cpu_s, running
from benchmarks.tools.report import Report, parse_arguments
from chassis.channels import open_channel
from tandem.stack import ServiceProcess
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, language_pb2, sampling_pb2

STREAMS = (1, 16, 64, 256)
# Aims at 99 %, by streams and kind: milliseconds above the relay, which no process in between can avoid.
AIMS_MS = {(16, "request"): 2.0, (16, "token"): 1.0, (256, "request"): 50.0}
TOKENS = 10  # length of an answer
DIRECT, RELAY, GATEWAY = "direct", "relay", "gateway"
PATHS = (DIRECT, RELAY, GATEWAY)


@dataclass(slots=True)
class Samples:
    """Samples of one path at one number of streams."""

    first_token: list[float] = field(default_factory=list)  # from the call to the first token, milliseconds
    token: list[float] = field(default_factory=list)  # from sending at the stage to receiving at the client, ms
    cpu_s: float = 0.0  # CPU time of the process in between


Measured = dict[tuple[str, int], Samples]


class Paths:
    """Sends the same question on every path."""

    def __init__(self, tag: str, channels: dict[str, Any]) -> None:
        sampling = sampling_pb2.SamplingOptions(max_tokens=TOKENS, num_logprobs=1, ignore_eos=True)
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="What is this?")])
        self._question = gateway_pb2.GatewayGenerateRequest(messages=[message], sampling=sampling)
        # A direct caller of the stage builds the prompt itself.
        text = language_pb2.TextSegment(token_ids=range(40))
        start = language_pb2.GenerateStart(tag=tag, sampling=sampling)
        self._prompt = language_pb2.GenerateRequest(whole=language_pb2.WholePrompt(start=start, text=text))
        language, relay = (
            channels[path].unary_stream(
                method,
                request_serializer=language_pb2.GenerateRequest.SerializeToString,
                response_deserializer=language_pb2.GenerateResponse.FromString,
            )
            for path, method in ((DIRECT, bare_relay.LANGUAGE_METHOD), (RELAY, bare_relay.METHOD))
        )
        self._gateway: Any = gateway_pb2_grpc.GatewayStub(channels[GATEWAY])
        self._calls: dict[str, Callable[[], AsyncIterator[sampling_pb2.PositionLogprobs]]] = {
            DIRECT: partial(self._call, language),
            RELAY: partial(self._call, relay),
            GATEWAY: self._call_gateway,
        }

    async def ask(self, path: str, samples: Samples) -> None:
        """Send one request and record its times."""
        started = time.perf_counter()
        is_first = True
        async for position in self._calls[path]():
            samples.token.append(since_ms(position.top[0].token_id))
            if is_first:
                samples.first_token.append(1000 * (time.perf_counter() - started))
                is_first = False

    async def _call(self, generate: Any) -> AsyncIterator[sampling_pb2.PositionLogprobs]:
        async for response in generate(self._prompt):
            for position in response.tokens.logprobs:
                yield position

    async def _call_gateway(self) -> AsyncIterator[sampling_pb2.PositionLogprobs]:
        async for response in self._gateway.Generate(self._question):
            for position in response.delta.logprobs:
                yield position


async def measure(tag: str, services: dict[str, ServiceProcess], rounds: int) -> Measured:
    """Return samples by path and number of streams.

    The paths take turns, so a change of the machine's speed affects all of them.
    """
    samples = {(path, streams): Samples() for streams in STREAMS for path in PATHS}
    async with AsyncExitStack() as stack:
        channels = {
            path: await stack.enter_async_context(open_channel(address_of(service)))
            for path, service in services.items()
        }
        paths = Paths(tag, channels)
        for path in PATHS:  # warm up: open connections and load code
            await asyncio.gather(*(paths.ask(path, Samples()) for _ in range(max(STREAMS))))
        gc.collect()
        gc.freeze()  # otherwise the client's garbage collector pauses for tens of milliseconds at times
        with Progress() as progress:
            task = progress.add_task("asking", total=rounds * len(samples))
            for number in range(rounds):
                for (path, streams), taken in samples.items():
                    rng = random.Random(number)  # equal delays on all paths
                    before_s = cpu_s(services[path].pid)
                    await asyncio.gather(*(_ask_later(paths, path, taken, rng.random()) for _ in range(streams)))
                    taken.cpu_s += cpu_s(services[path].pid) - before_s
                    progress.advance(task)
    return samples


async def _ask_later(paths: Paths, path: str, taken: Samples, delay_s: float) -> None:
    """Ask after a delay, so that requests do not queue."""
    await asyncio.sleep(delay_s)
    await paths.ask(path, taken)


def add_figures(report: Report, samples: Measured) -> dict[str, list[float]]:
    """Add the differences between paths to the report.

    Returns the curves of the plot: p99 over the number of streams.
    """
    curves: dict[str, list[float]] = {}
    for streams in STREAMS:
        for kind, attribute in (("request", "first_token"), ("token", "token")):
            for percentile in (50, 99):
                ms = {
                    path: float(np.percentile(getattr(samples[path, streams], attribute), percentile)) for path in PATHS
                }
                report.details[f"{streams}/{kind}/p{percentile}"] = ms
                for path in (RELAY, GATEWAY):
                    added = ms[path] - ms[DIRECT]
                    report.add(f"{streams} streams: added to a {kind} by the {path}, p{percentile}", added, "ms")
                    if percentile == 99:
                        curves.setdefault(f"{path}, to a {kind}", []).append(added)
                aim_ms = AIMS_MS.get((streams, kind)) if percentile == 99 else None
                above = ms[GATEWAY] - ms[RELAY]
                report.add(
                    f"{streams} streams: gateway above the relay, a {kind}, p{percentile}",
                    above,
                    "ms",
                    aim=f"at most {aim_ms:g} ms" if aim_ms is not None else "",
                    met=above <= aim_ms if aim_ms is not None else None,
                )
        for path in (RELAY, GATEWAY):
            taken = samples[path, streams]
            per_token_us = 1e6 * taken.cpu_s / len(taken.token)
            report.add(f"{streams} streams: CPU time of the {path}", per_token_us, "us/token")
    return curves


def _start(stack: ExitStack, models: Path, tag: str, module: str, *flags: str) -> ServiceProcess:
    """Run one process until the stack is closed."""
    own = ["--release", tag, "--max-running", "1024"] if module == "gateway" else []
    return stack.enter_context(running(module, ["--models", str(models), *own, *flags]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure the latency that the gateway adds to a direct call of a stage.",
        arguments,
        **RELEASE_OPTIONS,
        pace_ms={
            "type": float,
            "default": 100.0,
            "help": "time between the tokens of a stream, milliseconds (default: 100)",
        },
        workers={"type": int, "default": 1, "help": "processes of a second gateway to compare (default: 1, none)"},
    )
    tag = chosen_release(options)
    rounds = 1 if options.quick else 5
    with ExitStack() as stack:
        start = partial(_start, stack, options.models, tag)
        language = start("benchmarks.tools.paced_language", "--tag", tag, "--pace-ms", str(options.pace_ms))
        services = {
            DIRECT: language,
            RELAY: start("benchmarks.tools.bare_relay", "--language", address_of(language)),
            GATEWAY: start("gateway", "--language", address_of(language)),
        }
        samples = uvloop.run(measure(tag, services, rounds))
    report = Report(
        "gateway_overhead", f"Latency added by the gateway, a token every {options.pace_ms:g} ms per stream"
    )
    curves = add_figures(report, samples)
    if options.workers > 1:
        with ExitStack() as stack:
            start = partial(_start, stack, options.models, tag)
            language = start("benchmarks.tools.paced_language", "--tag", tag, "--pace-ms", "0")
            gateways = {
                workers: start("gateway", "--language", address_of(language), "--workers", str(workers))
                for workers in (1, options.workers)
            }
            add_throughput(report, uvloop.run(measure_throughput(gateways, rounds)))

    def plot(axes: Axes) -> None:
        for name, values in curves.items():
            axes.plot(STREAMS, values, marker="o", label=f"added by the {name}, p99")
        axes.set(xlabel="streams at once", ylabel="ms", xscale="log", yscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
