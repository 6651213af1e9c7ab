"""Checkpoints, their exports, and the model repository made of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoint.exports import Export, export_folder, read_record
from checkpoint.families import ResamplerModelConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.tags import parse_tag
from processing import Pixels
from vision_service.backends import BackendOptions, VisionBackend, open_backend
from vision_service.exporting import ExportOptions, TritonSettings, export_vision
from vision_service.exporting.triton_repository import add_to_repository

TAG, OTHER_TAG = "tiny-v1.0.0", "tiny-v1.1.0"  # versions of one model, with different weights
VERSION, OTHER_VERSION = "1000000", "1001000"
SETTINGS = TritonSettings(platform="python", max_batch_size=8, max_wait_ms=50, max_queue=64)

# Models of other names with the weights of TAG, and a program that returns the tokens of `pixels`.
PROGRAMS = {
    "slow": """
        (folder / "started").touch()
        for _ in range(100):
            if request.is_cancelled():
                (folder / "cancelled").touch()
                break
            time.sleep(0.1)
        return self.tokens(pixels)
    """,
    "narrow": "return self.tokens(pixels)[:, :, :-1]",
    "other-type": "return self.tokens(pixels).astype(np.float16)",
    "not-finite": "return self.tokens(pixels) * np.float32('nan')",
    "failing": "raise ValueError('a secret of ' + str(folder))",
}


@dataclass(frozen=True)
class Repository:
    """A model store and a model repository."""

    store: Path
    folder: Path
    config: ResamplerModelConfig = RESAMPLER_PRESETS["tiny"]

    def export_new(self, tag: str, seed: int) -> None:
        """Create a checkpoint and export it."""
        create_checkpoint(self.store, tag, self.config, seed=seed, dtype=torch.float32)
        export_vision(self.store / tag, "onnx", ExportOptions(precision="float32"))

    def place(self, tag: str) -> Path:
        """Return the folder of a checkpoint's export."""
        return export_folder(self.store / tag, "onnx", "float32")

    def export(self, tag: str) -> Export:
        return read_record(self.place(tag))

    def add(self, tag: str, *, name: str = "", settings: TritonSettings = SETTINGS) -> Path:
        """Add a version and return its folder.

        Args:
            tag: of the checkpoint.
            name: of the model, instead of the name in the tag.
            settings: of the model.
        """
        as_tag = parse_tag(f"{name}-v1.0.0" if name else tag)
        return add_to_repository(self.folder, as_tag, self.config, self.export(tag), self.place(tag), settings)

    def local_backend(self, tag: str) -> VisionBackend:
        """Return the backend that Triton is compared with."""
        options = BackendOptions(precision="float32", max_batch_size=8)
        return open_backend("onnxruntime", self.store / tag, options).backend

    def pixels(self, count: int = 1) -> list[Pixels]:
        """Return images of noise, all different."""
        side = self.config.vision.image_size
        return list(np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32))
