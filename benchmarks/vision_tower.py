"""Speed of Qwen3-VL's vision tower, compared with this machine's matrix products.

    python -m benchmarks.vision_tower            # the 2B shape, about five minutes on two idle cores
    python -m benchmarks.vision_tower --quick    # a tiny tower, without vLLM

The tower of our vision service encodes one image after the other, in bfloat16 with two threads. So do transformers'
tower in the same process and vLLM's in a process of its own, where it is installed (`make peers`). They have the same
random weights and take turns. Before each round, the script measures a product of two square matrices.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import Progress

from benchmarks.peers.hub_folder import make_hub_folder
from benchmarks.peers.tower_process import TowerProcess
from benchmarks.peers.vision_servers import VLLM
from benchmarks.tools.machine import matmul_peak
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from checkpoint.families import Qwen3VLConfig
from checkpoint.initial import RandomTensors
from checkpoint.presets import PRESETS, TINY_QWEN3_VL
from vision_service.backends.torch_backend import TorchBackend
from vision_service.model.grids import to_patches

OURS = "tandem"
SIZES = ((448, 448), (1024, 768))  # width and height of an image, pixels
AIM_PERCENT = 70
PRESET = "qwen3-vl-2b-instruct"

# Encodes an image of a size and returns the seconds it took.
Encode = Callable[[tuple[int, int]], float]


def operations(config: Qwen3VLConfig, size: tuple[int, int]) -> float:
    """Return the tower's floating-point operations for one image."""
    vision = config.vision
    patches = size[0] * size[1] // vision.patch_size**2
    layer = patches * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width) + 2 * patches**2 * vision.width
    merged = vision.width * vision.merge_size**2
    merger = patches // vision.merge_size**2 * (merged**2 + merged * config.language.width)
    embedding = patches * vision.width * 3 * vision.patch_size**2
    return 2.0 * (vision.num_layers * layer + vision.num_levels * merger + embedding)


def pixels(size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return random normalised pixels, [3, height, width]."""
    return np.random.default_rng(0).uniform(-1, 1, (3, size[1], size[0])).astype(np.float32)


def our_tower(config: Qwen3VLConfig) -> Encode:
    """Return the tower of the vision service."""
    every = RandomTensors(config, seed=0, dtype=torch.bfloat16)
    tensors = {spec.name: every[spec.name] for spec in config.tensors() if spec.half == "vision"}
    backend = TorchBackend(config, tensors, dtype=torch.bfloat16, device=torch.device("cpu"))

    def encode(size: tuple[int, int]) -> float:
        image = pixels(size)
        start_s = time.perf_counter()
        backend.encode([image])
        return time.perf_counter() - start_s

    return encode


def transformers_tower(config: Qwen3VLConfig) -> Encode:
    """Return the tower of transformers, with its default attention."""
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    vision = config.vision
    tower = Qwen3VLVisionModel._from_config(  # type: ignore[no-untyped-call]
        Qwen3VLVisionConfig(
            depth=vision.num_layers,
            hidden_size=vision.width,
            intermediate_size=vision.mlp_width,
            num_heads=vision.num_heads,
            out_hidden_size=config.language.width,
            num_position_embeddings=vision.num_positions,
            deepstack_visual_indexes=list(vision.deepstack_layers),
        ),
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
    ).eval()
    every = RandomTensors(config, seed=0, dtype=torch.bfloat16)
    tower.load_state_dict({name.removeprefix("visual."): every[name] for name in every if name.startswith("visual.")})

    @torch.inference_mode()
    def encode(size: tuple[int, int]) -> float:
        patches = to_patches(torch.from_numpy(pixels(size)).bfloat16(), vision.patch_size, vision.merge_size)
        frames = vision.temporal_patch_size
        patches = patches.view(len(patches), 3, 1, -1).expand(-1, -1, frames, -1).flatten(1)
        grid = torch.tensor([[1, size[1] // vision.patch_size, size[0] // vision.patch_size]])
        start_s = time.perf_counter()
        tower(patches, grid_thw=grid)
        return time.perf_counter() - start_s

    return encode


def measure(
    towers: dict[str, Encode], sizes: Sequence[tuple[int, int]], rounds: int
) -> tuple[dict[str, dict[tuple[int, int], list[float]]], list[float]]:
    """Return each tower's seconds, and FLOP/s of matrix products.

    Both have one entry per round.
    """
    seconds: dict[str, dict[tuple[int, int], list[float]]] = {name: {size: [] for size in sizes} for name in towers}
    peaks = []
    with Progress(console=Console(stderr=True)) as progress:
        for number in progress.track(range(rounds + 1), description="encoding"):
            peaks.append(matmul_peak())
            names = list(towers)[:: -1 if number % 2 else 1]
            for size in sizes:
                for name in names:
                    seconds[name][size].append(towers[name](size))
    for by_size in seconds.values():
        for samples in by_size.values():
            del samples[0]  # the warm-up
    return seconds, peaks[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure the speed of Qwen3-VL's vision tower.",
        arguments,
        folder={
            "type": Path,
            "default": Path(".tandem/qwen3_vl"),
            "help": "folder for the model, 4.3 GB (default: .tandem/qwen3_vl)",
        },
    )
    torch.set_num_threads(2)
    preset = TINY_QWEN3_VL if options.quick else PRESETS[PRESET]
    assert isinstance(preset, Qwen3VLConfig)
    with ExitStack() as stack:
        towers = {OURS: our_tower(preset), "transformers": transformers_tower(preset)}
        if VLLM.installed and not options.quick:
            hub = options.folder.absolute() / "hub"
            make_hub_folder(hub, preset)
            process = stack.enter_context(TowerProcess(hub, options.folder / "vllm_tower.log"))
            towers["vllm"] = process.encode
        seconds, peaks = measure(towers, SIZES, rounds=1 if options.quick else 5)
    report = Report(
        "vision_tower", f"Vision tower of {'a tiny model' if options.quick else PRESET}, bfloat16, two threads"
    )
    report.add("matrix products of this machine", statistics.median(peaks) / 1e12, "TFLOP/s")
    for size, name in ((size, name) for size in SIZES for name in towers):
        work, samples, label = operations(preset, size), seconds[name][size], f"{size[0]} x {size[1]}, {name}"
        report.add(f"{label}: one image", 1000 * statistics.median(samples), "ms")
        share = 100 * statistics.median(work / one / peak for one, peak in zip(samples, peaks, strict=True))
        if name == OURS:
            met = share >= AIM_PERCENT
            report.add(f"{label}: of matrix products", share, "%", aim=f"at least {AIM_PERCENT}", met=met)
        else:
            report.add(f"{label}: of matrix products", share, "%")
            report.add(f"{label} / {OURS}: time", median_ratio(samples, seconds[OURS][size]), "x")
    for name, by_size in seconds.items():
        report.details[name] = {f"{size[0]} x {size[1]}": samples for size, samples in by_size.items()}
    report.details["matmul_peaks"] = peaks
    report.publish(partial(plot, report=report), options.json)


def plot(axes: Axes, report: Report) -> None:
    """Draw each tower's share of the machine's matrix products."""
    shares = [figure for figure in report.figures if figure.unit == "%"]
    axes.barh([figure.name.partition(":")[0] for figure in shares], [figure.value for figure in shares])
    axes.axvline(AIM_PERCENT, color="black", linewidth=1)
    axes.set(xlabel="speed, % of this machine's matrix products")


if __name__ == "__main__":
    main()
