"""Load the vision half of a checkpoint."""

import asyncio
from dataclasses import dataclass

import torch
from PIL import Image

from chassis.errors import FailedPrecondition
from chassis.tensors import is_finite_bfloat16
from checkpoint.store import ModelStore
from checkpoint.weights import LoadedHalf, load_half
from processing import ImageProcessor, open_image_processor
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
    max_resized_pixels: int  # for families that take images of any size
    resources: SharedResources

    async def load(self, tag: str) -> ImageEncoder:
        """Read, check and warm up a vision half.

        Raises:
            TandemError: the checkpoint is missing, or its vision half is invalid.
        """
        half, processor, backend = await asyncio.to_thread(self._read, tag)
        return ImageEncoder(
            tag=tag,
            config=half.config,
            processor=processor,
            digest=half.digest,
            backend=backend,
            resources=self.resources,
            batching=self.batching,
        )

    def _read(self, tag: str) -> tuple[LoadedHalf, ImageProcessor, VisionBackend]:
        half = load_half(self.store.folder(tag), "vision", dtype=self.dtype, device=self.device)
        backend = open_backend(self.backend, half.config, half.tensors, dtype=self.dtype, device=self.device)
        # The first pass is slow, because it plans kernels and allocates memory. Run it before the first request.
        processor = open_image_processor(half.config, max_pixels=self.max_resized_pixels)
        [tokens] = backend.encode([processor.to_pixels(Image.new("RGB", (256, 256)))])
        if not is_finite_bfloat16(tokens):
            raise FailedPrecondition(
                f"The vision half of {tag} computes visual tokens that are not finite, import the checkpoint again.",
                reason="BAD_CHECKPOINT",
            )
        return half, processor, backend
