"""What the gateway adds to calling a stage directly: to the first token of a request, and to every token after it.

The language stage answers by the clock (`benchmarks.paced_language`), at the pace of a fast reader, and stamps each
token when it is sent; so the figures are the gateway's and the wire's, and no decoder's. Rounds through the gateway
and rounds past it alternate, and what is added is the difference of the same percentile of both.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.paced_language import since_ms
from benchmarks.processes import address_of, running
from benchmarks.report import Report, parse_arguments
from chassis.channels import open_channel
from checkpoint.store import ModelStore
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, language_pb2, language_pb2_grpc, sampling_pb2

STREAMS = (1, 16, 64, 256)
AIM_STREAMS, AIM_REQUEST_MS, AIM_TOKEN_MS = 16, 2.0, 1.0
TOKENS = 40  # of an answer
PATHS = ("direct", "gateway")


@dataclass(slots=True)
class Samples:
    """Milliseconds, of all requests on one path at one number of streams."""

    first_token: list[float] = field(default_factory=list)  # from the call to its first token
    token: list[float] = field(default_factory=list)  # from the stage's hands to the client's


class Paths:
    """Both ways to ask the same question."""

    def __init__(self, tag: str, gateway: Any, language: Any) -> None:
        self._tag = tag
        self._gateway = gateway
        self._language = language
        self._sampling = sampling_pb2.SamplingOptions(max_tokens=TOKENS, num_logprobs=1, ignore_eos=True)

    async def ask(self, path: str, samples: Samples) -> None:
        """Ask once and note what it took."""
        started = time.perf_counter()
        is_first = True
        async for position in self._through_gateway() if path == "gateway" else self._directly():
            samples.token.append(since_ms(position.top[0].token_id))
            if is_first:
                samples.first_token.append(1000 * (time.perf_counter() - started))
                is_first = False

    async def _through_gateway(self) -> Any:
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="What is this?")])
        request = gateway_pb2.GatewayGenerateRequest(messages=[message], sampling=self._sampling)
        async for response in self._gateway.Generate(request):
            for position in response.delta.logprobs:
                yield position

    async def _directly(self) -> Any:
        # As the gateway would send it: what it makes of the question is known to whoever calls the stage directly.
        call = self._language.Generate()
        start = language_pb2.GenerateStart(tag=self._tag, sampling=self._sampling)
        await call.write(language_pb2.GenerateRequest(start=start))
        await call.write(language_pb2.GenerateRequest(text=language_pb2.TextSegment(token_ids=range(40))))
        await call.done_writing()
        while response := await call.read():
            for position in response.tokens.logprobs:
                yield position


async def measure(paths: Paths, rounds: int) -> dict[tuple[str, int], Samples]:
    """Return the samples by path and number of streams, taken in turn so that a drifting machine is fair to both."""
    samples = {(path, streams): Samples() for streams in STREAMS for path in PATHS}
    for path in PATHS:  # connections, and code that is read from disk when it first runs
        await asyncio.gather(*(paths.ask(path, Samples()) for _ in range(max(STREAMS))))
    with Progress() as progress:
        task = progress.add_task("asking", total=rounds * len(samples))
        for _ in range(rounds):
            for (path, streams), taken in samples.items():
                await asyncio.gather(*(_staggered(paths, path, taken, streams, index) for index in range(streams)))
                progress.advance(task)
    return samples


async def _staggered(paths: Paths, path: str, taken: Samples, streams: int, index: int) -> None:
    """Ask at a moment of its own: people do not press return together, and all first tokens at once are a queue."""
    await asyncio.sleep(index / streams)
    await paths.ask(path, taken)


async def run(tag: str, gateway: str, language: str, rounds: int) -> dict[tuple[str, int], Samples]:
    """Open both ways and measure."""
    async with open_channel(gateway) as to_gateway, open_channel(language) as to_language:
        stubs: tuple[Any, Any] = (
            gateway_pb2_grpc.GatewayStub(to_gateway),
            language_pb2_grpc.LanguageServiceStub(to_language),
        )
        return await measure(Paths(tag, *stubs), rounds)


def add_figures(report: Report, samples: dict[tuple[str, int], Samples]) -> dict[str, list[float]]:
    """Put the differences into the table; return the p99 by kind, for the plot."""
    added: dict[str, list[float]] = {"request": [], "token": []}
    for streams in STREAMS:
        for kind, attribute, aim_ms in (
            ("request", "first_token", AIM_REQUEST_MS),
            ("token", "token", AIM_TOKEN_MS),
        ):
            direct, through = (np.array(getattr(samples[path, streams], attribute)) for path in PATHS)
            for percentile in (50, 99):
                ours, theirs = float(np.percentile(through, percentile)), float(np.percentile(direct, percentile))
                has_aim = streams == AIM_STREAMS and percentile == 99
                report.add(
                    f"{streams} streams: added to a {kind}, p{percentile}",
                    ours - theirs,
                    "ms",
                    aim=f"at most {aim_ms:g} ms" if has_aim else "",
                    met=ours - theirs <= aim_ms if has_aim else None,
                )
                report.details[f"{streams}/{kind}/p{percentile}"] = {"direct_ms": theirs, "gateway_ms": ours}
            added[kind].append(ours - theirs)
    return added


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "What the gateway adds to calling a stage directly.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "the model store"},
        release={"default": "", "help": "tag of the release; the newest of the store where left out"},
        pace_ms={"type": float, "default": 50.0, "help": "time between two tokens of a stream, milliseconds"},
    )
    tag = options.release or ModelStore(options.models).tags()[-1]
    models = ["--models", str(options.models)]
    paced = [*models, "--tag", tag, "--pace-ms", str(options.pace_ms)]
    with running("benchmarks.paced_language", paced) as language:
        flags = [*models, "--release", tag, "--language", address_of(language), "--max-running", "1024"]
        with running("gateway", flags) as gateway:
            rounds = 1 if options.quick else 8
            samples = asyncio.run(run(tag, address_of(gateway), address_of(language), rounds))
    report = Report("gateway_overhead", f"What the gateway adds, one token a stream every {options.pace_ms:g} ms")
    added = add_figures(report, samples)

    def plot(axes: Axes) -> None:
        for kind, values in added.items():
            axes.plot(STREAMS, values, marker="o", label=f"added to a {kind}, p99")
        axes.axhline(AIM_REQUEST_MS, linestyle=":", color="gray")
        axes.axhline(AIM_TOKEN_MS, linestyle=":", color="gray")
        axes.set(xlabel="streams at once", ylabel="ms", xscale="log", yscale="symlog")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
