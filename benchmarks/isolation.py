"""Text-only questions while images flood the vision stage: two processes against the same code in one.

All arrangements stand ready on the same cores, with one thread for the forward passes of each stage, and are asked in
turn: some text-only questions at rest, and as many while a flood of images, none of them kept, has the vision stage
encode without a pause. What counts is the time to the first token. Two processes left to the operating system are one
arrangement; the others use what only processes can be given: a lower priority for vision, and cores of their own.

With `--full-encoder` the encoder is ViT-L/14 with a six-layer resampler, of random weights, before a small decoder.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.hot_images import real_encoder
from benchmarks.latency import make_image
from benchmarks.tools.processes import address_of, running
from benchmarks.tools.report import Report, parse_arguments
from chassis.channels import open_channel
from checkpoint.initial import create_checkpoint
from checkpoint.store import ModelStore
from tandem.client import AsyncClient
from tandem.stack import ServiceProcess
from tandem.v1 import vision_pb2, vision_pb2_grpc

AIM_CUT_PERCENT = 42.0  # what others have published
FLOOD = 16  # images under way at any time
BETWEEN_QUESTIONS_S = 0.2
LOWER_PRIORITY = 10  # nice
KV_CACHE_BYTES = 2**26
FULL_TAG = "full-encoder-v1.0.0"
ONE, TWO, TWO_NICE, TWO_PINNED = (
    "one process",
    "two processes",
    "two, vision at lower priority",
    "two, each on cores of its own",
)


@dataclass(slots=True)
class Arrangement:
    """One way to run both stages, behind a gateway of its own; times are of all rounds."""

    gateway: str
    vision: str
    at_rest_ms: list[float] = field(default_factory=list)
    flooded_ms: list[float] = field(default_factory=list)
    num_encoded: int = 0
    flooded_s: float = 0.0


@contextmanager
def arranged(models: Path, tag: str) -> Iterator[dict[str, Arrangement]]:
    """Run every arrangement, each behind a gateway of its own, while the block runs."""
    store = ["--models", str(models)]
    vision_flags = [*store, "--tags", tag, "--threads", "1", "--cache-bytes", "0"]
    language_flags = [*store, "--tags", tag, "--threads", "1", "--kv-cache-bytes", str(KV_CACHE_BYTES)]
    both_flags = [*store, "--tag", tag, "--threads", "1", "--kv-cache-bytes", str(KV_CACHE_BYTES)]
    with ExitStack() as stack:

        def behind_gateway(vision: ServiceProcess, language: ServiceProcess) -> Arrangement:
            stages = ["--vision", address_of(vision), "--language", address_of(language)]
            gateway = stack.enter_context(running("gateway", [*store, "--release", tag, *stages]))
            return Arrangement(gateway=address_of(gateway), vision=address_of(vision))

        both = stack.enter_context(running("benchmarks.tools.both_stages", both_flags))
        language, pinned_language = (stack.enter_context(running("language_service", language_flags)) for _ in range(2))
        vision, meek, pinned_vision = (stack.enter_context(running("vision_service", vision_flags)) for _ in range(3))
        cores = sorted(os.sched_getaffinity(0))
        for thread in threads_of(meek):
            os.setpriority(os.PRIO_PROCESS, thread, LOWER_PRIORITY)
        for service, own in (
            (pinned_language, cores[: len(cores) // 2]),
            (pinned_vision, cores[len(cores) // 2 :]),
        ):
            for thread in threads_of(service):
                os.sched_setaffinity(thread, own)
        yield {
            ONE: behind_gateway(both, both),
            TWO: behind_gateway(vision, language),
            TWO_NICE: behind_gateway(meek, language),
            TWO_PINNED: behind_gateway(pinned_vision, pinned_language),
        }


def threads_of(service: ServiceProcess) -> list[int]:
    """Return the threads of a process; those it starts later inherit priority and cores."""
    return [int(thread) for thread in os.listdir(f"/proc/{service.pid}/task")]


async def measure(arrangements: dict[str, Arrangement], tag: str, rounds: int, questions: int) -> None:
    """Ask every arrangement in turn, so that a drifting machine is fair to all."""
    numbers = count()
    with Progress() as progress:
        task = progress.add_task("asking", total=rounds * len(arrangements))
        for _ in range(rounds):
            for arrangement in arrangements.values():
                async with AsyncClient(arrangement.gateway) as client:
                    await first_tokens(client, 1, numbers)  # the connection
                    arrangement.at_rest_ms += await first_tokens(client, questions, numbers)
                    async with flooded(arrangement, tag):
                        arrangement.flooded_ms += await first_tokens(client, questions, numbers)
                progress.advance(task)


async def first_tokens(client: AsyncClient, questions: int, numbers: Iterator[int]) -> list[float]:
    """Return the time to the first token of text-only questions, one after the other, milliseconds."""
    taken = []
    for _ in range(questions):
        answer = await client.ask(f"How is question {next(numbers)} meant?", max_tokens=2, ignore_eos=True)
        taken.append(answer.timings.first_token_ms)
        await asyncio.sleep(BETWEEN_QUESTIONS_S)
    return taken


@asynccontextmanager
async def flooded(arrangement: Arrangement, tag: str) -> AsyncIterator[None]:
    """Keep the vision stage busy while the block runs."""
    images = [make_image(seed) for seed in range(FLOOD)]  # made before: the stage keeps none, so the same ones will do
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    async with open_channel(arrangement.vision) as channel:
        stub: Any = vision_pb2_grpc.VisionServiceStub(channel)

        async def encode_on(image: bytes) -> None:
            request = vision_pb2.EncodeRequest(tag=tag, image=image, image_sha256=hashlib.sha256(image).digest())
            while not stopping.is_set():
                await stub.Encode(request)
                arrangement.num_encoded += 1

        began_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for image in images:
                tasks.create_task(encode_on(image))
            await asyncio.sleep(0.5)  # until the first batches run
            try:
                yield
            finally:
                stopping.set()  # what is under way ends before anything else is measured
        arrangement.flooded_s += loop.time() - began_s


def publish(arrangements: dict[str, Arrangement], name: str, title: str, json_path: Path | None) -> None:
    """Print the table and write the files."""
    report = Report(name, title)
    for way, arrangement in arrangements.items():
        report.add(f"{way}, at rest: first token p50", float(np.percentile(arrangement.at_rest_ms, 50)), "ms")
        report.add(f"{way}, flooded: first token p50", float(np.percentile(arrangement.flooded_ms, 50)), "ms")
        report.add(f"{way}, flooded: first token p95", float(np.percentile(arrangement.flooded_ms, 95)), "ms")
        report.add(f"{way}, flooded: images encoded", arrangement.num_encoded / arrangement.flooded_s, "/s")
        report.details[way] = {"at_rest_ms": arrangement.at_rest_ms, "flooded_ms": arrangement.flooded_ms}
    one = arrangements[ONE]
    for percent in (50, 95):
        # Nothing is faster than at rest, so what the flood adds in one process is all there is to cut.
        report.add(f"most there is to cut, p{percent}", cut(one.flooded_ms, one.at_rest_ms, percent), "%")
        for way in (TWO, TWO_NICE, TWO_PINNED):
            part = cut(one.flooded_ms, arrangements[way].flooded_ms, percent)
            aim = f"at least {AIM_CUT_PERCENT:g} %"
            report.add(f"{way}: first token sooner, p{percent}", part, "%", aim=aim, met=part >= AIM_CUT_PERCENT)

    def plot(axes: Axes) -> None:
        for way, arrangement in arrangements.items():
            ordered = np.sort(arrangement.flooded_ms)
            axes.plot(ordered, np.linspace(0, 1, len(ordered)), label=f"{way}, flooded")
        axes.set(xlabel="time to first token, ms", ylabel="part of the questions", xscale="log")
        axes.legend()

    report.publish(plot, json_path)


def cut(before_ms: Sequence[float], after_ms: Sequence[float], percent: int) -> float:
    """Return by how many percent a percentile is shorter."""
    return float(100 * (1 - np.percentile(after_ms, percent) / np.percentile(before_ms, percent)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Text-only questions while images flood the vision stage.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "the model store"},
        release={"default": "", "help": "tag of the release; the newest of the store where left out"},
        full_encoder={"action": "store_true", "help": "with a full-size encoder of random weights instead"},
    )
    rounds, questions = (2, 5) if options.quick else (3 if options.full_encoder else 10, 10)
    with tempfile.TemporaryDirectory() as folder:
        models, tag = options.models, options.release or ModelStore(options.models).tags()[-1]
        if options.full_encoder:
            models, tag = Path(folder), FULL_TAG
            create_checkpoint(models, tag, real_encoder(), dtype=torch.bfloat16)
        with arranged(models, tag) as arrangements:
            asyncio.run(measure(arrangements, tag, rounds, questions))
    name = "isolation_full_encoder" if options.full_encoder else "isolation"
    publish(arrangements, name, f"Text-only questions while images flood the vision stage: {tag}", options.json)


if __name__ == "__main__":
    main()
