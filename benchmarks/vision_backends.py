"""Backends of the vision service, side by side on one machine.

    python -m benchmarks.vision_backends                        # ViT-L/14 with its resampler
    python -m benchmarks.vision_backends --model qwen3-vl-2b    # the tower of Qwen3-VL-2B, images of 448 x 448 pixels

Every installed backend runs the same vision half. The weights are random, at the same cost as trained ones. Batches of
1, 4 and 16 images take turns between the designs, so all see the same machine. Errors are those of visual tokens
against torch in float32, relative to the mean magnitude. ViT-L/14 takes twelve minutes on two idle cores and 12 GB of
memory. Processors without products of bfloat16 take fewer and smaller batches, in 23 minutes.

Each processor has its own results: `results/vision_backends-PROCESSOR-KERNELS.json`.
"""

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from rich.progress import Progress
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tools.machine import matmul_peak
from benchmarks.tools.processor import processor_slug
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from benchmarks.tools.vision_designs import DESIGNS, Design, Encode, Export, Pixels
from chassis.errors import FailedPrecondition
from checkpoint.families import LanguageConfig, ModelConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS, RESAMPLER_PRESETS
from checkpoint.weights import load_half
from processing import open_image_processor
from vision_service.exporting import ExportOptions, export_vision
from vision_service.model import build_vision_model

MODEL = "vit-l-14"
ROUNDS = {MODEL: {1: 8, 4: 6, 16: 2}, "qwen3-vl-2b": {1: 5, 4: 3, 16: 1}, "demo": {1: 5, 4: 3}}  # by batch size
SLOW_ROUNDS = {1: 4, 4: 3}  # where torch multiplies bfloat16 number by number
TODAY, AIM, AIM_BATCH = "torch", 1.25, 4
SIDE = 448  # of the images, pixels
EQUAL = 1.1  # times the error of torch in bfloat16 that counts as equal accuracy


@dataclass(slots=True)
class Samples:
    """Measurements of one model."""

    seconds: dict[int, dict[str, list[float]]] = field(default_factory=dict)  # by batch size and design
    mean_errors: dict[str, float] = field(default_factory=dict)  # by design
    largest_errors: dict[str, float] = field(default_factory=dict)  # by design, relative to the largest magnitude
    opening_s: dict[str, float] = field(default_factory=dict)  # by design, with the first batch
    left_out: dict[str, str] = field(default_factory=dict)  # reasons by design that cannot run here
    peaks: list[float] = field(default_factory=list)  # matrix products, FLOP/s
    flops: float = 0.0  # of one image


def models() -> dict[str, ModelConfig]:
    """Return the models to measure by title."""
    # The decoders are not used, so they are as small as their widths and levels allow.
    small: dict[str, Any] = {
        "num_heads": 1,
        "num_kv_heads": 1,
        "mlp_width": 1,
        "vocab_size": 264,
        "eos_token_ids": (2,),
    }
    full, qwen = RESAMPLER_PRESETS["qwen3-vl-8b"], PRESETS["qwen3-vl-2b-instruct"]
    full_decoder = LanguageConfig(width=full.language.width, num_layers=1, head_dim=2, **small)
    qwen_decoder = qwen.language.model_copy(update={"num_layers": 4, **small})
    return {
        MODEL: full.model_copy(update={"language": full_decoder}),
        "qwen3-vl-2b": qwen.model_copy(update={"language": qwen_decoder}),
        "demo": RESAMPLER_PRESETS["demo"],
    }


def images(config: ModelConfig, count: int) -> list[Pixels]:
    """Return different smooth images, ready for the model."""
    rng, processor = np.random.default_rng(0), open_image_processor(config, max_pixels=SIDE**2)
    coarse = [Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)) for _ in range(count)]
    return [processor.to_pixels(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in coarse]


def exact_tokens(folder: Path, some: Sequence[Pixels]) -> tuple[list[np.ndarray], float]:
    """Return exact visual tokens, and one image's operations."""
    half = load_half(folder, "vision", dtype=torch.float32)
    with torch.device("meta"):
        model = build_vision_model(half.config)
    model.load_state_dict(half.tensors, assign=True)
    model.float().eval().requires_grad_(requires_grad=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokens = [model.encode([torch.from_numpy(image)])[0].numpy() for image in some]
    return tokens, counter.get_total_flops() / len(some)


def export(folder: Path, designs: Sequence[Design], progress: Progress) -> dict[Export, str]:
    """Make the exports of designs, and say why some fail."""
    failed: dict[Export, str] = {}
    needed = sorted({design.export for design in designs if design.export is not None})
    task = progress.add_task(f"{folder.name}: exports", total=len(needed))
    for kind, precision in needed:
        try:
            export_vision(folder, kind, ExportOptions(precision=precision))
        except FailedPrecondition as error:
            failed[kind, precision] = error.message
        gc.collect()
        progress.advance(task)
    return failed


def open_designs(
    folder: Path, designs: Sequence[Design], some: Sequence[Pixels], samples: Samples, progress: Progress
) -> dict[str, Encode]:
    """Open designs and measure their errors.

    Those that cannot run here are left out.
    """
    failed = export(folder, designs, progress)
    exact, samples.flops = exact_tokens(folder, some)
    opened: dict[str, Encode] = {}
    for design in progress.track(designs, description=f"{folder.name}: opening"):
        start = time.perf_counter()
        try:
            if design.export in failed:
                raise FailedPrecondition(failed[design.export], reason="BAD_EXPORT")
            encode = design.open(folder)
        except FailedPrecondition as error:
            samples.left_out[design.title] = error.message
            continue
        opened[design.title] = encode
        found = [floats(bits) for bits in encode(some)]
        samples.opening_s[design.title] = time.perf_counter() - start
        differences = [np.abs(one - right) for one, right in zip(found, exact, strict=True)]
        samples.mean_errors[design.title] = float(np.mean(differences) / np.mean(np.abs(exact)))
        samples.largest_errors[design.title] = float(np.max(differences) / np.max(np.abs(exact)))
    return opened


def measure_model(title: str, slow: bool) -> Samples:
    """Return the samples of one model, made for it."""
    config = models()[title]
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="tandem-backends-") as store:
        create_checkpoint(Path(store), f"{title}-v1.0.0", config)
        rounds = ROUNDS[title] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else SLOW_ROUNDS
        return measure(Path(store) / f"{title}-v1.0.0", config, rounds, slow, progress)


def measure(folder: Path, config: ModelConfig, rounds: dict[int, int], slow: bool, progress: Progress) -> Samples:
    """Return the samples of one model."""
    designs = [design for design in DESIGNS if design.is_installed and (slow or not design.slow_start)]
    samples, pixels = Samples(), images(config, max(rounds))
    opened = open_designs(folder, designs, pixels[:3], samples, progress)
    task = progress.add_task(f"{folder.name}: batches", total=sum(rounds.values()) * len(opened))
    for batch, count in rounds.items():
        for encode in opened.values():
            encode(pixels[:batch])  # plans kernels for this size
        samples.seconds[batch] = {title: [] for title in opened}
        for turn in range(count):
            samples.peaks.append(matmul_peak())
            # Every other round goes backwards, so that no design always follows the same one.
            for title, encode in list(opened.items())[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                encode(pixels[:batch])
                samples.seconds[batch][title].append(time.perf_counter() - start)
                progress.advance(task)
    return samples


def floats(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 bit patterns as numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def fill(report: Report, title: str, samples: Samples) -> None:
    """Add one model's figures to the report."""
    peak = statistics.median(samples.peaks)
    report.add(f"{title}: matrix products", peak / 1e12, "TFLOP/s")
    report.add(f"{title}: operations per image", samples.flops / 1e9, "GFLOP")
    for design, error in samples.mean_errors.items():
        report.add(f"{title}: {design}, mean error", 100 * error, "%")
        report.add(f"{title}: {design}, largest error", 100 * samples.largest_errors[design], "%")
    for batch, by_design in samples.seconds.items():
        for design, seconds in by_design.items():
            name, rate = f"{title}, batch {batch}: {design}", batch / statistics.median(seconds)
            report.add(name, rate, "images/s")
            report.add(f"{name}, p50", 1000 * statistics.median(seconds), "ms")
            report.add(f"{name}, p99", 1000 * float(np.percentile(seconds, 99)), "ms")
            report.add(f"{name}, share of matrix products", 100 * rate * samples.flops / peak, "%")
            if design != TODAY:
                report.add(f"{name} / {TODAY}", median_ratio(by_design[TODAY], seconds), "x")
    report.details[title] = {
        "seconds": samples.seconds,
        "mean_errors": samples.mean_errors,
        "largest_errors": samples.largest_errors,
        "opening_s": samples.opening_s,
        "left_out": samples.left_out,
        "peaks": samples.peaks,
    }


def add_aim(report: Report, title: str, samples: Samples) -> None:
    """Add the gain over plain torch at equal accuracy."""
    by_design, errors = samples.seconds[AIM_BATCH], samples.mean_errors
    plain = "torch without our kernels"
    equal = [name for name in by_design if name != plain and errors[name] <= EQUAL * errors[plain]]
    gains = {name: median_ratio(by_design[plain], by_design[name]) for name in equal}
    best = max(gains, key=lambda name: gains[name])
    report.add(
        f"{title}, batch {AIM_BATCH}: {best} / {plain}, at equal accuracy",
        gains[best],
        "x",
        aim=f"at least {AIM}",
        met=gains[best] >= AIM,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Compare the backends of the vision service.",
        arguments,
        model={"choices": list(ROUNDS), "default": MODEL, "help": f"vision half (default: {MODEL})"},
    )
    title = "demo" if options.quick else options.model
    name = "vision_backends" if title == MODEL else f"vision_backends-{title}"
    heading = f"{title}, batch {AIM_BATCH}: images/s, relative to torch in bfloat16 on the CPU"
    report = Report(f"{name}-{processor_slug()}", heading)
    # A process of its own gives its memory back. The compiler and the libraries keep theirs.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        samples = process.submit(measure_model, title, not options.quick).result()
    for design, reason in samples.left_out.items():
        print(f"{design} is left out: {reason}")
    fill(report, title, samples)
    add_aim(report, title, samples)

    def plot(axes: Axes) -> None:
        by_design = samples.seconds[AIM_BATCH]
        axes.barh(list(by_design), [median_ratio(by_design[TODAY], seconds) for seconds in by_design.values()])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set(xlabel="images/s, relative to the backend torch")

    report.publish(plot, options.json)


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:  # as in the vision service. torch reads it on import
        command = [sys.executable, "-m", "benchmarks.vision_backends", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    main()
