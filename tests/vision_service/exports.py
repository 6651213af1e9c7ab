"""Exports of tiny checkpoints of both families, made once per test run."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoint.exports import ExportKind, Precision
from checkpoint.families import ModelConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from processing import Pixels, open_image_processor
from tests.processing.image_zoo import IMAGES
from vision_service.backends import BackendName, BackendOptions, VisionBackend, open_backend
from vision_service.exporting import Exported, ExportOptions, export_vision

TAGS = {"resampler": "tiny-v1.0.0", "qwen3_vl": "tiny-qwen3-vl-v1.0.0"}  # by family
RAGGED = ("square", "photo", "tiny", "very wide", "square")  # images of the zoo

_FOLDER = TemporaryDirectory(prefix="tandem-exports-")
STORE = Path(_FOLDER.name)


def config_of(family: str) -> ModelConfig:
    return PRESETS[TAGS[family].removesuffix("-v1.0.0")]


@cache
def checkpoint(family: str) -> Path:
    """Return the folder of a checkpoint.

    Tests must not change it.
    """
    create_checkpoint(STORE, TAGS[family], config_of(family), dtype=torch.float32)
    return STORE / TAGS[family]


@cache
def exported(family: str, kind: ExportKind, precision: Precision) -> Exported:
    """Return an export beside the checkpoint."""
    return export_vision(checkpoint(family), kind, ExportOptions(precision=precision))


def opened(name: BackendName, family: str, precision: Precision = "float32", **options: object) -> VisionBackend:
    fields = {"precision": precision, "max_batch_size": 5, **options}
    return open_backend(name, checkpoint(family), BackendOptions(**fields)).backend  # type: ignore[arg-type]


def zoo(family: str, names: tuple[str, ...] = RAGGED) -> list[Pixels]:
    processor = open_image_processor(config_of(family), max_pixels=2**18)
    return [processor.to_pixels(IMAGES[name]) for name in names]


def floats(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 bit patterns as numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
