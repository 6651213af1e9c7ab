"""Load the vision half of a checkpoint."""

import asyncio
from dataclasses import dataclass

import numpy as np
import torch

from chassis.errors import FailedPrecondition
from chassis.tensors import is_finite_bfloat16
from checkpoint.config import ModelConfig
from checkpoint.store import ModelStore
from checkpoint.weights import load_half
from vision_service.backends import BackendName, VisionBackend, open_backend
from vision_service.batcher import BatchConfig
from vision_service.image_encoder import ImageEncoder, SharedResources


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLoader:
    """Loads vision halves from a model store."""

    store: ModelStore
    backend: BackendName
    dtype: torch.dtype
    device: torch.device
    batching: BatchConfig
    resources: SharedResources

    async def load(self, tag: str) -> ImageEncoder:
        """Read, check and warm up a vision half.

        Raises:
            TandemError: the checkpoint is missing, or its vision half is invalid.
        """
        config, digest, backend = await asyncio.to_thread(self._read, tag)
        return ImageEncoder(
            tag=tag, config=config, digest=digest, backend=backend, resources=self.resources, batching=self.batching
        )

    def _read(self, tag: str) -> tuple[ModelConfig, bytes, VisionBackend]:
        half = load_half(self.store.folder(tag), "vision", dtype=self.dtype, device=self.device)
        backend = open_backend(self.backend, half.config, half.tensors, dtype=self.dtype, device=self.device)
        # The first pass is slow, because it plans kernels and allocates memory. Run it before the first request.
        side = half.config.vision.image_size
        if not is_finite_bfloat16(backend.encode(np.zeros((1, 3, side, side), dtype=np.float32))):
            raise FailedPrecondition(
                f"The vision half of {tag} computes visual tokens that are not finite, import the checkpoint again.",
                reason="BAD_CHECKPOINT",
            )
        return half.config, half.digest, backend
