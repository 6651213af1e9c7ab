"""Measure the backends of a release and choose the fastest."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from chassis.errors import FailedPrecondition, TandemError
from checkpoint.backend_choice import BackendChoice
from checkpoint.families import ModelConfig
from checkpoint.manifest import read_manifest, read_verified_config
from processing import Pixels, open_image_processor
from vision_service.backends import BackendName, BackendOptions, VisionBackend, open_backend
from vision_service.exporting.comparison import sample_images

_BATCH = 4  # images, as under moderate load


def choose_backend(
    folder: Path,
    names: Sequence[BackendName],
    options: BackendOptions,
    *,
    rounds: int = 5,
    on_step: Callable[[str], None] = lambda _: None,
) -> BackendChoice:
    """Measure backends on this machine and return the fastest.

    All are in memory together, and take turns. One that cannot be opened is skipped.

    Args:
        folder: of the checkpoint.
        names: the backends to measure.
        options: how to compute.
        rounds: batches of four images that each encodes. The median counts.
        on_step: called with the name of each step.

    Raises:
        FailedPrecondition: NO_BACKEND, none of them can be opened.
    """
    manifest = read_manifest(folder)
    images = _batch(read_verified_config(folder, manifest), options)
    backends: dict[str, VisionBackend] = {}
    skipped: dict[str, str] = {}
    for name in names:
        on_step(f"opening {name}")
        try:
            backends[name] = open_backend(name, folder, options).backend
            backends[name].encode(images)  # the first pass plans kernels
        except TandemError as error:
            backends.pop(name, None)
            skipped[name] = error.message
    if not backends:
        reasons = " ".join(skipped.values())
        raise FailedPrecondition(f"No backend of {folder.name} can be opened: {reasons}", reason="NO_BACKEND")
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for turn in range(rounds):
        on_step(f"round {turn + 1} of {rounds}")
        for opened, backend in backends.items():
            start = time.perf_counter()
            backend.encode(images)
            seconds[opened].append(time.perf_counter() - start)
    rates = {name: len(images) / statistics.median(samples) for name, samples in seconds.items()}
    return BackendChoice(
        vision_digest=manifest.vision.digest,
        device_type=options.device.type,
        device=_device_name(options.device),
        precision=options.precision,
        backend=max(rates, key=lambda name: rates[name]),
        images_per_s=rates,
        skipped=skipped,
    )


def _batch(config: ModelConfig, options: BackendOptions) -> list[Pixels]:
    processor = open_image_processor(config, max_pixels=options.max_resized_pixels)
    return sample_images(processor)[:_BATCH]


def _device_name(device: torch.device) -> str:
    """Return the name of a processor or GPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
