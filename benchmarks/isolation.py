"""Latency of text-only questions while images flood the vision stage.

The benchmark compares both stages in one process with several deployments as two processes: plain, with a lower
priority for vision, and with separate cores. All deployments run on the same machine, with one thread per stage, and
take turns. Each answers text-only questions while the vision stage is idle, and again while uncached images keep it
busy. The figure is the time to first token.

With `--full-encoder`, the model has a full-size vision half (ViT-L/14 with a six-layer resampler), a small decoder and
random weights.
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

from benchmarks.tools.images import mosaic
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release, full_size_encoder
from benchmarks.tools.processes import address_of, running
from benchmarks.tools.report import Report, parse_arguments
from chassis.channels import open_channel
from checkpoint.initial import create_checkpoint
from tandem.client import AsyncClient
from tandem.stack import ServiceProcess
from tandem.v1 import vision_pb2, vision_pb2_grpc

AIM_PERCENT = 42.0  # published by others for this comparison
FLOOD = 16  # images in flight
BETWEEN_QUESTIONS_S = 0.2
LOWER_PRIORITY = 10  # nice
KV_CACHE_BYTES = 2**26
FULL_TAG = "full-size-encoder-v1.0.0"
ONE, TWO, TWO_NICE, TWO_PINNED = (
    "one process",
    "two processes",
    "two processes, vision at lower priority",
    "two processes, separate cores",
)


@dataclass(slots=True)
class Deployment:
    """One way to run both stages, and its measurements."""

    gateway: str  # address
    vision: str  # address
    idle_ms: list[float] = field(default_factory=list)  # times to first token, vision stage idle
    flooded_ms: list[float] = field(default_factory=list)  # times to first token, vision stage busy
    num_encoded: int = 0  # images during the flood
    flooded_s: float = 0.0  # duration of the flood


@contextmanager
def deployed(models: Path, tag: str) -> Iterator[dict[str, Deployment]]:
    """Run every deployment, each with its own gateway."""
    store = ["--models", str(models)]
    vision_flags = [*store, "--tags", tag, "--threads", "1", "--cache-bytes", "0"]
    language_flags = [*store, "--tags", tag, "--threads", "1", "--kv-cache-bytes", str(KV_CACHE_BYTES)]
    both_flags = [*store, "--tag", tag, "--threads", "1", "--kv-cache-bytes", str(KV_CACHE_BYTES)]
    with ExitStack() as stack:

        def with_gateway(vision: ServiceProcess, language: ServiceProcess) -> Deployment:
            stages = ["--vision", address_of(vision), "--language", address_of(language)]
            gateway = stack.enter_context(running("gateway", [*store, "--release", tag, *stages]))
            return Deployment(gateway=address_of(gateway), vision=address_of(vision))

        both = stack.enter_context(running("benchmarks.tools.both_stages", both_flags))
        language, pinned_language = (stack.enter_context(running("language_service", language_flags)) for _ in range(2))
        vision, nice_vision, pinned_vision = (
            stack.enter_context(running("vision_service", vision_flags)) for _ in range(3)
        )
        cores = sorted(os.sched_getaffinity(0))
        for thread in threads_of(nice_vision):
            os.setpriority(os.PRIO_PROCESS, thread, LOWER_PRIORITY)
        for service, own in (
            (pinned_language, cores[: len(cores) // 2]),
            (pinned_vision, cores[len(cores) // 2 :]),
        ):
            for thread in threads_of(service):
                os.sched_setaffinity(thread, own)
        yield {
            ONE: with_gateway(both, both),
            TWO: with_gateway(vision, language),
            TWO_NICE: with_gateway(nice_vision, language),
            TWO_PINNED: with_gateway(pinned_vision, pinned_language),
        }


def threads_of(service: ServiceProcess) -> list[int]:
    """Return the threads of a process.

    Threads that it starts later inherit priority and cores.
    """
    return [int(thread) for thread in os.listdir(f"/proc/{service.pid}/task")]


async def measure(deployments: dict[str, Deployment], tag: str, rounds: int, questions: int) -> None:
    """Measure all deployments in turn.

    A change of the machine's speed then affects all of them.
    """
    numbers = count()
    with Progress() as progress:
        task = progress.add_task("asking", total=rounds * len(deployments))
        for _ in range(rounds):
            for deployment in deployments.values():
                async with AsyncClient(deployment.gateway) as client:
                    await first_tokens(client, 1, numbers)  # opens the connection
                    deployment.idle_ms += await first_tokens(client, questions, numbers)
                    async with flooded(deployment, tag):
                        deployment.flooded_ms += await first_tokens(client, questions, numbers)
                progress.advance(task)


async def first_tokens(client: AsyncClient, questions: int, numbers: Iterator[int]) -> list[float]:
    """Return the times to first token of text-only questions, milliseconds."""
    taken = []
    for _ in range(questions):
        answer = await client.ask(f"How is question {next(numbers)} meant?", max_tokens=2, ignore_eos=True)
        taken.append(answer.timings.first_token_ms)
        await asyncio.sleep(BETWEEN_QUESTIONS_S)
    return taken


@asynccontextmanager
async def flooded(deployment: Deployment, tag: str) -> AsyncIterator[None]:
    """Keep the vision stage busy while the block runs."""
    images = [mosaic(seed) for seed in range(FLOOD)]  # the stage has no cache, so they may repeat
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    async with open_channel(deployment.vision) as channel:
        stub: Any = vision_pb2_grpc.VisionServiceStub(channel)

        async def encode_repeatedly(image: bytes) -> None:
            request = vision_pb2.EncodeRequest(tag=tag, image=image, image_sha256=hashlib.sha256(image).digest())
            while not stopping.is_set():
                await stub.Encode(request).read()
                deployment.num_encoded += 1

        began_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for image in images:
                tasks.create_task(encode_repeatedly(image))
            await asyncio.sleep(0.5)  # until the first batches run
            try:
                yield
            finally:
                stopping.set()  # requests in flight end before the next measurement
        deployment.flooded_s += loop.time() - began_s


def publish(deployments: dict[str, Deployment], name: str, title: str, json_path: Path | None) -> None:
    """Print the table and write the files."""
    report = Report(name, title)
    for key, deployment in deployments.items():
        report.add(f"{key}, idle: time to first token p50", float(np.percentile(deployment.idle_ms, 50)), "ms")
        report.add(f"{key}, flooded: time to first token p50", float(np.percentile(deployment.flooded_ms, 50)), "ms")
        report.add(f"{key}, flooded: time to first token p95", float(np.percentile(deployment.flooded_ms, 95)), "ms")
        report.add(f"{key}, flooded: images encoded", deployment.num_encoded / deployment.flooded_s, "images/s")
        report.details[key] = {"idle_ms": deployment.idle_ms, "flooded_ms": deployment.flooded_ms}
    one = deployments[ONE]
    for percent in (50, 95):
        # No deployment under a flood can be faster than an idle one.
        limit = reduction(one.flooded_ms, one.idle_ms, percent)
        report.add(f"largest possible reduction of time to first token, p{percent}", limit, "%")
        for key in (TWO, TWO_NICE, TWO_PINNED):
            value = reduction(one.flooded_ms, deployments[key].flooded_ms, percent)
            aim, met = f"at least {AIM_PERCENT:g} %", value >= AIM_PERCENT
            report.add(f"{key}: reduction of time to first token, p{percent}", value, "%", aim=aim, met=met)

    def plot(axes: Axes) -> None:
        for key, deployment in deployments.items():
            ordered = np.sort(deployment.flooded_ms)
            axes.plot(ordered, np.linspace(0, 1, len(ordered)), label=f"{key}, flooded")
        axes.set(xlabel="time to first token, ms", ylabel="share of the questions", xscale="log")
        axes.legend()

    report.publish(plot, json_path)


def reduction(before_ms: Sequence[float], after_ms: Sequence[float], percent: int) -> float:
    """Return the reduction of a percentile, percent."""
    return float(100 * (1 - np.percentile(after_ms, percent) / np.percentile(before_ms, percent)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure text-only questions while images flood the vision stage.",
        arguments,
        **RELEASE_OPTIONS,
        full_encoder={"action": "store_true", "help": "use a new model with a full-size encoder and random weights"},
    )
    rounds, questions = (2, 5) if options.quick else (3 if options.full_encoder else 10, 10)
    with tempfile.TemporaryDirectory() as folder:
        if options.full_encoder:
            models, tag = Path(folder), FULL_TAG
            create_checkpoint(models, tag, full_size_encoder(), dtype=torch.bfloat16)
        else:
            models, tag = options.models, chosen_release(options)
        with deployed(models, tag) as deployments:
            asyncio.run(measure(deployments, tag, rounds, questions))
    name = "isolation_full_encoder" if options.full_encoder else "isolation"
    publish(deployments, name, f"Text-only questions while images flood the vision stage: {tag}", options.json)


if __name__ == "__main__":
    main()
