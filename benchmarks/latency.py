"""Latency and throughput of the whole stack.

The figures are time to first token, inter-token latency and throughput, for three kinds of questions: text only, a new
image, and a known image. Each kind runs at several numbers of streams. Rounds are interleaved, and the figures are
medians over rounds.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.images import mosaic
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.report import Report, parse_arguments
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig

QUESTION = "What colour is the bag?"
KINDS = ("text", "new image", "known image")
TOKENS = 32  # length of every answer


@dataclass(frozen=True, slots=True)
class Sample:
    """One round: simultaneous requests of one kind."""

    first_token_s: list[float]
    between_tokens_s: list[float]  # mean of each request
    tokens_per_s: float  # all streams together


async def ask(client: AsyncClient, images: Sequence[bytes]) -> tuple[float, float]:
    """Ask one question and measure its answer.

    Returns the time to first token and the mean time between tokens, seconds.
    """
    answer = await client.ask(QUESTION, images=images, max_tokens=TOKENS, ignore_eos=True)
    timings = answer.timings
    return timings.first_token_ms / 1000, timings.decode_ms / 1000 / (TOKENS - 1)


async def run_round(client: AsyncClient, kind: str, streams: int, seed: int) -> Sample:
    """Send `streams` requests of one kind at once."""
    if kind == "text":
        images: list[list[bytes]] = [[] for _ in range(streams)]
    elif kind == "new image":
        images = [[mosaic(seed * 1000 + index)] for index in range(streams)]
    else:
        images = [[mosaic(0)] for _ in range(streams)]
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, one) for one in images))
    elapsed_s = time.perf_counter() - start
    return Sample([first for first, _ in answers], [gap for _, gap in answers], streams * TOKENS / elapsed_s)


async def measure(address: str, rounds: int, streams: Sequence[int]) -> dict[tuple[str, int], list[Sample]]:
    """Return samples by kind and number of streams.

    All of them take turns, so a change of the machine's speed affects each.
    """
    samples: dict[tuple[str, int], list[Sample]] = {(kind, count): [] for kind in KINDS for count in streams}
    async with AsyncClient(address) as client:
        for kind in KINDS:  # warm up: the first call of a shape chooses kernels
            await run_round(client, kind, max(streams), seed=0)
        with Progress() as progress:
            task = progress.add_task("asking", total=rounds * len(samples))
            for index in range(rounds):
                for (kind, count), taken in samples.items():
                    taken.append(await run_round(client, kind, count, seed=1 + index * 100 + count))
                    progress.advance(task)
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure latency and throughput of the whole stack.",
        arguments,
        **RELEASE_OPTIONS,
    )
    release = chosen_release(options)
    streams = (1, 8) if options.quick else (1, 8, 32)
    with Stack(StackConfig(models=options.models, release=release)) as stack:
        samples = asyncio.run(measure(stack.address, 5 if options.quick else 15, streams))

    report = Report("latency", f"Latency of the stack: {release}")
    first: dict[tuple[str, int], float] = {}
    for (kind, count), taken in samples.items():
        first[kind, count] = statistics.median(x for one in taken for x in one.first_token_s) * 1000
        gap = statistics.median(x for one in taken for x in one.between_tokens_s) * 1000
        rate = statistics.median(one.tokens_per_s for one in taken)
        report.add(f"{kind}, {count} streams: time to first token p50", first[kind, count], "ms")
        report.add(f"{kind}, {count} streams: inter-token latency p50", gap, "ms")
        report.add(f"{kind}, {count} streams: throughput", rate, "tokens/s")
    for count in streams:
        saved = 1 - first["known image", count] / first["new image", count]
        report.add(f"{count} streams: time to first token saved with a known image", 100 * saved, "%")

    def plot(axes: Axes) -> None:
        for kind in KINDS:
            axes.plot(streams, [first[kind, count] for count in streams], marker="o", label=kind)
        axes.set(xlabel="streams at once", ylabel="time to first token p50, ms", xscale="log", yscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
