"""Time to first token, inter-token latency and tokens a second of the stack as it stands, for the record.

Interleaved rounds of three kinds of question (text alone, an image never seen, an image already seen) at several
numbers of streams; medians over rounds. Runs on the newest release of `models/`, or on the one named by --release.
"""

import asyncio
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image as PillowImage
from rich.progress import Progress

from benchmarks.tools.report import Report, parse_arguments
from checkpoint.store import ModelStore
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig

QUESTION = "What colour is the bag?"
KINDS = ("text", "new image", "known image")
TOKENS = 32  # of every answer, whatever the model would say


@dataclass(frozen=True, slots=True)
class Sample:
    """One round: `streams` requests of one kind at once."""

    first_token_s: list[float]
    between_tokens_s: list[float]  # mean of each request
    tokens_per_s: float  # of all streams together


def make_image(seed: int) -> bytes:
    """Return an image nobody has seen, as a JPEG file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (14, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    PillowImage.fromarray(pixels).resize((448, 448)).save(file, "JPEG")
    return file.getvalue()


async def ask(client: AsyncClient, images: Sequence[bytes]) -> tuple[float, float]:
    """Return (time to first token, mean time between tokens) of one request as its user sees it, seconds."""
    answer = await client.ask(QUESTION, images=images, max_tokens=TOKENS, ignore_eos=True)
    timings = answer.timings
    return timings.first_token_ms / 1000, timings.decode_ms / 1000 / (TOKENS - 1)


async def run_round(client: AsyncClient, kind: str, streams: int, seed: int) -> Sample:
    """Send `streams` requests of one kind at once and wait for all."""
    if kind == "text":
        images: list[list[bytes]] = [[] for _ in range(streams)]
    elif kind == "new image":
        images = [[make_image(seed * 1000 + index)] for index in range(streams)]
    else:
        images = [[make_image(0)] for _ in range(streams)]
    start = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, one) for one in images))
    elapsed_s = time.perf_counter() - start
    return Sample([first for first, _ in answers], [gap for _, gap in answers], streams * TOKENS / elapsed_s)


async def measure(address: str, rounds: int, streams: Sequence[int]) -> dict[tuple[str, int], list[Sample]]:
    """Return the samples by kind and number of streams, taken in turn so that a drifting machine is fair to all."""
    samples: dict[tuple[str, int], list[Sample]] = {(kind, count): [] for kind in KINDS for count in streams}
    async with AsyncClient(address) as client:
        for kind in KINDS:  # warm: the first of a shape pays for choosing kernels
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
        "Latency of the whole stack, as its users see it.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "the model store"},
        release={"default": "", "help": "tag of the release; the newest of the store where left out"},
    )
    release = options.release or ModelStore(options.models).tags()[-1]
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
        report.add(f"{kind}, {count} streams: all streams", rate, "tokens/s")
    for count in streams:
        saved = 1 - first["known image", count] / first["new image", count]
        report.add(f"{count} streams: first token sooner on a known image", 100 * saved, "%")

    def plot(axes: Axes) -> None:
        for kind in KINDS:
            axes.plot(streams, [first[kind, count] for count in streams], marker="o", label=kind)
        axes.set(xlabel="streams at once", ylabel="time to first token p50, ms", xscale="log", yscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
