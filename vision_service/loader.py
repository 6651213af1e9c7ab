"""Load the vision half of a checkpoint and make it ready."""

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
from vision_service.hosted import HostedVision, Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLoader:
    """Reads vision halves of a model store and makes them ready."""

    store: ModelStore
    backend: BackendName
    dtype: torch.dtype
    device: torch.device
    batching: BatchConfig
    shared: Shared

    async def load(self, tag: str) -> HostedVision:
        """Read, check and warm the vision half of a checkpoint.

        Raises:
            TandemError: there is no such checkpoint, or it does not hold a vision half that works.
        """
        config, digest, backend = await asyncio.to_thread(self._read, tag)
        return HostedVision(
            tag=tag, config=config, digest=digest, backend=backend, shared=self.shared, batching=self.batching
        )

    def _read(self, tag: str) -> tuple[ModelConfig, bytes, VisionBackend]:
        half = load_half(self.store.folder(tag), "vision", dtype=self.dtype, device=self.device)
        backend = open_backend(self.backend, half.config, half.tensors, dtype=self.dtype, device=self.device)
        # The first pass plans kernels and takes memory: better now than in somebody's request.
        side = half.config.vision.image_size
        if not is_finite_bfloat16(backend.encode(np.zeros((1, 3, side, side), dtype=np.float32))):
            raise FailedPrecondition(
                f"The vision half of {tag} gives visual tokens that are not finite.", reason="BAD_CHECKPOINT"
            )
        return half.config, half.digest, backend
