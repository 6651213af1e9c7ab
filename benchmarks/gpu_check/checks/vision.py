"""Measure images a second of vision backends beside the matrix peak."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_check.limits import matmul_peak, median_s
from benchmarks.gpu_check.models import DeviceTensors
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from checkpoint.exports import Precision
from checkpoint.saving import save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import byte_tokenizer
from vision_service.backends import (
    EXPORTS,
    BackendName,
    BackendOptions,
    VisionBackend,
    library_version,
    open_backend,
)
from vision_service.model import build_vision_model

_TAG = "vision-v1.0.0"
_EXPORT_S = 60.0  # longest export of one backend
_LONGEST_S = 0.5  # of one batch
_AIM = 60  # percent of the matrix peak
_T4_PEAK = 65e12  # FLOP/s of a T4 in half precision, as published
_T4_AIM = 50  # images a second


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report images/s of the model alone and of whole backends."""
    peak = matmul_peak(sizes.device, sizes.dtype, sizes.matmul_side)
    rows.add("matrix peak", peak / 1e12, "TFLOP/s")
    tensors = DeviceTensors(sizes.model, dtype=sizes.dtype, device=sizes.device).of("vision")
    with torch.device("meta"):
        model = build_vision_model(sizes.model)
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False).eval()
    flop = _flop_per_image(sizes, model)
    rows.add("work for one image", flop / 1e9, "GFLOP")
    best = _measure_model(sizes, rows, "torch, model alone", model, flop / peak, sizes.image_batches)
    _judge(rows, "model alone", best, flop, peak)
    if sizes.compiles:
        last = sizes.image_batches[-1:]
        best = _measure_model(sizes, rows, "torch.compile, model alone", torch.compile(model), flop / peak, last)
        _judge(rows, "model compiled", best, flop, peak)
    _measure_backends(sizes, rows)


def _judge(rows: RowWriter, name: str, best: float, flop: float, peak: float) -> None:
    """Add the rows with aims. `best` is the most images/s."""
    rows.at_least(f"{name}, share of the matrix peak", 100 * best * flop / peak, "%", _AIM)
    note = "if a T4 reaches the same share"
    rows.at_least(f"{name}, scaled to a T4's peak", best * _T4_PEAK / peak, "images/s", _T4_AIM, note=note)


def _flop_per_image(sizes: Sizes, model: torch.nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(_pixels(sizes, 1))
    return float(counter.get_total_flops())


def _pixels(sizes: Sizes, count: int) -> Tensor:
    side = sizes.model.vision.image_size
    return torch.randn(count, 3, side, side, device=sizes.device, dtype=sizes.dtype)


def _measure_model(
    sizes: Sizes,
    rows: RowWriter,
    name: str,
    model: Callable[[Tensor], Tensor],
    limit_s: float,
    batches: Sequence[int],
) -> float:
    """Add a row for each batch size.

    Returns the most images/s.
    """
    best = 0.0
    for count in batches:
        pixels = _pixels(sizes, count)
        try:
            with torch.inference_mode():
                seconds = median_s(partial(model, pixels), sizes.device) / count
        except Exception as problem:  # compilers fail in many ways
            rows.absent(f"{name}, batch {count}", f"cannot run here: {type(problem).__name__}: {str(problem)[:300]}")
            continue
        share = f"{100 * limit_s / seconds:.0f} % of the matrix peak"
        rows.add(f"{name}, batch {count}", 1 / seconds, "images/s", note=share)
        best = max(best, 1 / seconds)
    return best


def _measure_backends(sizes: Sizes, rows: RowWriter) -> None:
    """Measure every backend, with pixels and tokens on the host."""
    with tempfile.TemporaryDirectory() as models:
        folder = _write_checkpoint(sizes, Path(models))
        for name in sizes.backends:
            try:
                if name == "triton":
                    raise RuntimeError("it needs a Triton server")
                if name in EXPORTS:
                    _check_library(name, _options(sizes))
                    # TensorRT runs an engine, which is made of the ONNX export.
                    _export(sizes, Path(models), "tensorrt" if name == "tensorrt" else EXPORTS[name])
                backend = open_backend(name, folder, _options(sizes)).backend
                _measure_backend(sizes, rows, name, backend)
            except Exception as problem:  # each backend has its own libraries and its own errors
                rows.absent(f"backend {name}", f"cannot run here: {type(problem).__name__}: {str(problem)[-300:]}")


def _check_library(name: BackendName, options: BackendOptions) -> None:
    """Fail before the export, which takes a minute.

    Raises:
        FailedPrecondition: the library is not installed, or cannot use this device.
    """
    library_version(name)
    if name == "onnxruntime":
        from vision_service.backends.onnxruntime_backend import providers  # now it is installed

        providers(options)


def _write_checkpoint(sizes: Sizes, models: Path) -> Path:
    """Write the vision half with a very small decoder.

    Returns the folder.
    """
    small = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32, "mlp_width": 64, "vocab_size": 264}
    config = sizes.model.model_copy(update={"language": sizes.model.language.model_copy(update=small)})
    tensors = DeviceTensors(config, dtype=sizes.dtype, device=sizes.device)
    with ModelStore(models).create(_TAG) as folder:
        save(folder, config, tensors, _TAG, tokenizer_json=byte_tokenizer().to_str())
    return ModelStore(models).folder(_TAG)


def _options(sizes: Sizes) -> BackendOptions:
    precision: Precision = "bfloat16" if sizes.dtype == torch.bfloat16 else "float32"
    return BackendOptions(precision=precision, device=sizes.device, max_batch_size=max(sizes.image_batches))


def _export(sizes: Sizes, models: Path, kind: str) -> None:
    """Export for a backend, within a time limit."""
    options = _options(sizes)
    command = [sys.executable, "-m", "tandem", "checkpoint", "export", _TAG, "--to", kind, "--models", str(models)]
    command += ["--precision", options.precision, "--max-batch-size", str(options.max_batch_size), "--replace"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_EXPORT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"export ended with {done.returncode}: {done.stderr}")


def _measure_backend(sizes: Sizes, rows: RowWriter, name: str, backend: VisionBackend) -> None:
    side = sizes.model.vision.image_size
    for count in sizes.image_batches:
        images = [np.random.default_rng(row).normal(size=(3, side, side)).astype(np.float32) for row in range(count)]
        seconds = median_s(partial(backend.encode, images), sizes.device, 5)
        rows.add(f"backend {name}, batch {count}", count / seconds, "images/s", note="pixels and tokens on the host")
        if seconds > _LONGEST_S:  # larger batches would take the time of other checks
            break
