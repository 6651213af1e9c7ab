"""Throughput of the vision service compared with plain torch.

Both turn image files into visual tokens, with the same weights and threads. The loop alternately decodes a batch and
runs the model, without gRPC. For a small model, where decoding takes a large share of the time, the script also
measures the loop on decoded pixels, which is an upper limit. Rounds are interleaved, and the figures are medians. The
weights are random, at the same cost as trained ones. A run takes about seven minutes on two idle cores.
"""

import asyncio
import hashlib
import io
import itertools
import statistics
import tempfile
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
from benchmarks.tools.processes import address_of, running
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from chassis.request_id import REQUEST_ID_HEADER
from checkpoint.families import LanguageConfig, ResamplerModelConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from processing import open_image_processor
from tandem.v1 import vision_pb2, vision_pb2_grpc
from vision_service.backends import BackendOptions, open_backend
from vision_service.image_reader import ImageLimits, read_image
from vision_service.model import VisionHalf

CALLERS = (1, 4, 16, 64)
BATCHES = (1, 4, 16)
MAX_BATCH = 16
AIM = 0.9
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to measure."""

    title: str
    config: ResamplerModelConfig
    num_images: int  # images per sample, at least
    has_costly_decoding: bool  # the one or two ms to decode an image matter, compared with the model's time

    @property
    def tag(self) -> str:
        """Its tag in the temporary model store."""
        return f"{self.title}-v1.0.0"


@dataclass(slots=True)
class Rates:
    """Images/s, one sample per round."""

    service: dict[int, list[float]] = field(default_factory=dict)  # by number of callers
    files: dict[int, list[float]] = field(default_factory=dict)  # plain loop on files, by batch size
    pixels: dict[int, list[float]] = field(default_factory=dict)  # plain loop on decoded pixels, by batch size
    peak_flops: list[float] = field(default_factory=list)


def models_to_measure() -> list[Model]:
    """Return the demo model and a full-size vision half."""
    full = RESAMPLER_PRESETS["qwen3-vl-8b"]
    # The decoder is not used, so it is as small as its width allows.
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
        Model(title="demo", config=RESAMPLER_PRESETS["demo"], num_images=64, has_costly_decoding=True),
        Model(
            title="vit-l-14",
            config=full.model_copy(update={"language": decoder}),
            num_images=2,
            has_costly_decoding=False,
        ),
    ]


def image_files(count: int) -> list[bytes]:
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
    """Run the vision service in bfloat16 and yield its address."""
    flags = ["--models", str(models), "--tags", tag, "--precision", "bfloat16", "--max-batch-size", str(MAX_BATCH)]
    with running("vision_service", flags) as process:
        yield address_of(process)


async def encode_with_service(address: str, tag: str, files: Sequence[bytes], callers: int) -> float:
    """Encode all files with concurrent calls and return images/s."""
    # New cache salts, so that no image is a cache hit.
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
                await stub.Encode(request, metadata=((REQUEST_ID_HEADER, "benchmark"),)).read()

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return len(files) / (time.perf_counter() - start)


def encode_in_loop(encode: Callable[[list[bytes]], object], files: list[bytes], batch: int) -> float:
    """Encode all files in a plain loop and return images/s."""
    start = time.perf_counter()
    for first in range(0, len(files), batch):
        encode(files[first : first + batch])
    return len(files) / (time.perf_counter() - start)


def count_flops(config: ResamplerModelConfig) -> float:
    """Return the floating-point operations of encoding one image.

    It counts matrix products and attention.
    """
    side = config.vision.image_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VisionHalf(config).requires_grad_(False)(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def measure(model: Model, rounds: int, progress: Progress) -> Rates:
    """Return the samples of one model."""
    processor, rates = open_image_processor(model.config), Rates()
    with tempfile.TemporaryDirectory(prefix="tandem-vision-") as folder:
        models = Path(folder)
        create_checkpoint(models, model.tag, model.config)
        backend = open_backend("torch", models / model.tag, BackendOptions()).backend
        files = image_files(max(*CALLERS, model.num_images))
        decoded = {file: processor.to_pixels(read_image(file, ImageLimits())) for file in files}

        def from_files(some: list[bytes]) -> None:
            backend.encode([processor.to_pixels(read_image(file, ImageLimits())) for file in some])

        def from_pixels(some: list[bytes]) -> None:
            backend.encode([decoded[file] for file in some])

        loops = [(rates.files, from_files)] + model.has_costly_decoding * [(rates.pixels, from_pixels)]
        task = progress.add_task(model.title, total=rounds * (len(CALLERS) + len(loops) * len(BATCHES)))
        with vision_service(models, model.tag) as address:
            for _ in range(rounds):
                rates.peak_flops.append(matmul_peak())
                for callers in CALLERS:
                    some = files[: max(callers, model.num_images)]
                    rate = asyncio.run(encode_with_service(address, model.tag, some, callers))
                    rates.service.setdefault(callers, []).append(rate)
                    progress.advance(task)
                for batch, (samples, encode) in itertools.product(BATCHES, loops):
                    some = files[: max(batch, model.num_images)]
                    samples.setdefault(batch, []).append(encode_in_loop(encode, some, batch))
                    progress.advance(task)
    return rates


def best(samples: dict[int, list[float]]) -> list[float]:
    """Return the samples with the highest median."""
    return max(samples.values(), key=statistics.median)


def fill(report: Report, title: str, rates: Rates, flops: float) -> None:
    """Add one model's figures to the report."""
    for number, values in rates.service.items():
        report.add(f"{title}: service, {number} caller{'s' * (number > 1)}", statistics.median(values), "images/s")
    for number, values in rates.files.items():
        report.add(f"{title}: plain loop, batches of {number}", statistics.median(values), "images/s")
    for number, values in rates.pixels.items():
        name = f"{title}: plain loop on decoded pixels, batches of {number}"
        report.add(name, statistics.median(values), "images/s")
    gain = median_ratio(best(rates.service), rates.service[1])
    report.add(f"{title}: best service rate / one caller", gain, "x")
    share = median_ratio(best(rates.service), best(rates.files))
    report.add(f"{title}: best service rate / best plain loop", 100 * share, "%", aim="at least 90", met=share >= AIM)
    if rates.pixels:
        share = median_ratio(best(rates.service), best(rates.pixels))
        report.add(f"{title}: best service rate / best plain loop on decoded pixels", 100 * share, "%")
    peak = statistics.median(rates.peak_flops)
    used = statistics.median(best(rates.service)) * flops / peak
    report.add(f"{title}: operations per image", flops / 1e9, "GFLOP")
    report.add(f"{title}: best service rate, share of the bf16 peak ({peak / 1e12:.2f} TFLOP/s)", 100 * used, "%")
    report.details[title] = {
        "service": rates.service,
        "plain_loop": rates.files,
        "plain_loop_on_pixels": rates.pixels,
        "peak_flops": rates.peak_flops,
        "flops_per_image": flops,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Compare the throughput of the vision service with plain torch.",
        arguments,
        only={"choices": [model.title for model in models_to_measure()], "help": "measure only this model"},
    )
    measured: dict[str, Rates] = {}
    report = Report("vision_batching", "Vision service compared with plain torch in a loop, bfloat16")
    with Progress() as progress:
        for model in models_to_measure():
            if options.only in (None, model.title) and not (options.quick and model.title != "demo"):
                measured[model.title] = measure(model, 5, progress)
                fill(report, model.title, measured[model.title], count_flops(model.config))

    def plot(axes: Axes) -> None:
        for title, rates in measured.items():
            limit = statistics.median(best(rates.files))
            shares = [100 * statistics.median(values) / limit for values in rates.service.values()]
            axes.plot(list(rates.service), shares, marker="o", label=title)
        axes.axhline(100 * AIM, color="grey", linewidth=0.8, label="aim")
        axes.set(xlabel="concurrent callers", ylabel="share of the best plain loop, %", xscale="log", ylim=(0, None))
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
