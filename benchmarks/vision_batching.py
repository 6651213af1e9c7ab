"""Does the vision service keep the model busy? Images a second over gRPC against plain torch in a loop.

Both get image files and give visual tokens, on the same weights and threads. The loop decodes a batch and runs the
model, in turn, with nobody to serve; where decoding weighs beside the model, it is measured on ready pixels as well,
which no service can be. Interleaved rounds of every number of callers and every batch size, medians. Random weights:
they cost the same as trained ones. Takes about seven minutes on two idle cores.
"""

import asyncio
import hashlib
import io
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tools.machine import matmul_peak
from benchmarks.tools.report import Report, parse_arguments
from chassis.request_id import REQUEST_ID_HEADER
from checkpoint.config import LanguageConfig, ModelConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from checkpoint.weights import load_half
from processing import to_pixels
from tandem.stack import ServiceProcess
from tandem.v1 import vision_pb2, vision_pb2_grpc
from vision_service.backends import open_backend
from vision_service.image_files import ImageLimits, read_image
from vision_service.model import VisionHalf

CALLERS = (1, 4, 16, 64)
BATCHES = (1, 4, 16)
MAX_BATCH = 16
AIM = 0.9
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to measure, and how many images one sample takes at least."""

    title: str
    config: ModelConfig
    num_images: int
    decoding_weighs: bool  # beside the model: an image takes a millisecond or two to decode

    @property
    def tag(self) -> str:
        """Its tag in the benchmark's own store."""
        return f"{self.title}-v1.0.0"


@dataclass(slots=True)
class Rates:
    """Images a second, one sample a round."""

    service: dict[int, list[float]] = field(default_factory=dict)  # by callers
    files: dict[int, list[float]] = field(default_factory=dict)  # plain loop from files, by batch size
    pixels: dict[int, list[float]] = field(default_factory=dict)  # plain loop from ready pixels, by batch size
    peak_flops: list[float] = field(default_factory=list)


def subjects() -> list[Subject]:
    """Return the full-size vision half and the demo model's."""
    full = PRESETS["qwen3-vl-8b"]
    # The decoder takes no part: as small as one of its width can be.
    decoder = LanguageConfig(
        width=full.language.width,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        mlp_width=1,
        vocab_size=264,
        eos_token_ids=(2,),
    )
    return [
        Subject(title="demo", config=PRESETS["demo"], num_images=64, decoding_weighs=True),
        Subject(
            title="vit-l-14",
            config=full.model_copy(update={"language": decoder}),
            num_images=2,
            decoding_weighs=False,
        ),
    ]


def images(count: int) -> list[bytes]:
    """Return different JPEG files of 448 x 448 pixels."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (14, 14, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((448, 448), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextmanager
def vision_service(models: Path, tag: str) -> Iterator[str]:
    """Run the vision service with one model in bfloat16; yield its address."""
    flags = ["--models", str(models), "--tags", tag, "--listen", "127.0.0.1:0", "--log-format", "json"]
    flags += ["--precision", "bfloat16", "--max-batch-size", str(MAX_BATCH)]
    changed = threading.Condition()
    process = ServiceProcess("vision", "vision_service", flags, lambda _service, _line: None, changed)
    process.start()
    try:
        with changed:
            changed.wait_for(lambda: bool(process.ready) or process.exit_code is not None, timeout=120)
        if not process.ready:
            raise RuntimeError(f"the vision service did not start: {process.last_error}")
        yield f"127.0.0.1:{process.ready['port']}"
    finally:
        process.terminate()
        process.wait(10)
        process.kill()


async def ask(address: str, tag: str, files: Sequence[bytes], callers: int) -> float:
    """Encode all files with `callers` calls at a time; return images a second."""
    # Tenants nobody has seen, so that nothing was encoded before.
    salt = time.time_ns().to_bytes(8, "little")
    requests = iter(
        [
            vision_pb2.EncodeRequest(
                tag=tag,
                image=file,
                image_sha256=hashlib.sha256(file).digest(),
                cache_salt=salt + index.to_bytes(8, "little"),
            )
            for index, file in enumerate(files)
        ]
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        await channel.channel_ready()

        async def caller() -> None:
            for request in requests:
                await stub.Encode(request, metadata=((REQUEST_ID_HEADER, "benchmark"),))

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return len(files) / (time.perf_counter() - start)


def loop(encode: Callable[[list[bytes]], object], files: list[bytes], batch: int) -> float:
    """Encode all files in a plain loop, `batch` at a time; return images a second."""
    start = time.perf_counter()
    for first in range(0, len(files), batch):
        encode(files[first : first + batch])
    return len(files) / (time.perf_counter() - start)


def count_flops(config: ModelConfig) -> float:
    """Return the floating-point operations the matrix products and attention of one image take."""
    side = config.vision.image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VisionHalf(config).requires_grad_(False)(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def measure(subject: Subject, rounds: int, progress: Progress) -> Rates:
    """Return the samples of one model."""
    vision, rates = subject.config.vision, Rates()
    with tempfile.TemporaryDirectory(prefix="tandem-vision-") as folder:
        models = Path(folder)
        create_checkpoint(models, subject.tag, subject.config)
        half = load_half(models / subject.tag, "vision", dtype=torch.bfloat16)
        backend = open_backend("torch", half.config, half.tensors, dtype=torch.bfloat16, device=torch.device("cpu"))
        files = images(max(*CALLERS, subject.num_images))
        ready = {file: to_pixels(read_image(file, ImageLimits()), vision) for file in files}

        def from_files(some: list[bytes]) -> None:
            backend.encode(np.stack([to_pixels(read_image(file, ImageLimits()), vision) for file in some]))

        def from_pixels(some: list[bytes]) -> None:
            backend.encode(np.stack([ready[file] for file in some]))

        loops = [(rates.files, from_files)] + subject.decoding_weighs * [(rates.pixels, from_pixels)]
        task = progress.add_task(subject.title, total=rounds * (len(CALLERS) + len(loops) * len(BATCHES)))
        with vision_service(models, subject.tag) as address:
            for _ in range(rounds):
                rates.peak_flops.append(matmul_peak(torch.bfloat16))
                for callers in CALLERS:
                    some = files[: max(callers, subject.num_images)]
                    rate = asyncio.run(ask(address, subject.tag, some, callers))
                    rates.service.setdefault(callers, []).append(rate)
                    progress.advance(task)
                for batch, (samples, encode) in itertools.product(BATCHES, loops):
                    some = files[: max(batch, subject.num_images)]
                    samples.setdefault(batch, []).append(loop(encode, some, batch))
                    progress.advance(task)
    return rates


def best(samples: dict[int, list[float]]) -> list[float]:
    """Return the samples of the number of callers, or the batch size, with the highest median."""
    return max(samples.values(), key=statistics.median)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of the ratio of two samples of the same round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def fill(report: Report, title: str, rates: Rates, flops: float) -> None:
    """Add one model's figures to the report."""
    for number, values in rates.service.items():
        report.add(f"{title}: {number} caller{'s' * (number > 1)}", statistics.median(values), "images/s")
    for number, values in rates.files.items():
        report.add(f"{title}: {number} at a time, plain loop", statistics.median(values), "images/s")
    for number, values in rates.pixels.items():
        report.add(f"{title}: {number} at a time, plain loop, pixels ready", statistics.median(values), "images/s")
    gain = median_ratio(best(rates.service), rates.service[1])
    report.add(f"{title}: best over one caller", gain, "x")
    share = median_ratio(best(rates.service), best(rates.files))
    report.add(f"{title}: best of the plain loop's", 100 * share, "%", aim="at least 90", met=share >= AIM)
    if rates.pixels:
        share = median_ratio(best(rates.service), best(rates.pixels))
        report.add(f"{title}: best of the plain loop's, pixels ready", 100 * share, "%")
    peak = statistics.median(rates.peak_flops)
    used = statistics.median(best(rates.service)) * flops / peak
    report.add(f"{title}: operations of one image", flops / 1e9, "GFLOP")
    report.add(f"{title}: best, of the bf16 matrix peak ({peak / 1e12:.2f} TFLOP/s)", 100 * used, "%")
    report.details[title] = {
        "service": rates.service,
        "plain_loop": rates.files,
        "plain_loop_pixels_ready": rates.pixels,
        "peak_flops": rates.peak_flops,
        "flops_of_one_image": flops,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Images a second of the vision service against plain torch.",
        arguments,
        only={"choices": [one.title for one in subjects()], "help": "measure this model alone"},
    )
    measured: dict[str, Rates] = {}
    report = Report("vision_batching", "Vision service against plain torch in a loop, bfloat16")
    with Progress() as progress:
        for subject in subjects():
            if options.only in (None, subject.title) and not (options.quick and subject.title != "demo"):
                measured[subject.title] = measure(subject, 5, progress)
                fill(report, subject.title, measured[subject.title], count_flops(subject.config))

    def plot(axes: Axes) -> None:
        for title, rates in measured.items():
            limit = statistics.median(best(rates.files))
            shares = [100 * statistics.median(values) / limit for values in rates.service.values()]
            axes.plot(list(rates.service), shares, marker="o", label=title)
        axes.axhline(100 * AIM, color="grey", linewidth=0.8, label="aim")
        axes.set(xlabel="callers at once", ylabel="of the plain loop's best, %", xscale="log", ylim=(0, None))
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
