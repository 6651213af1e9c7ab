"""Load the vision half of a checkpoint."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog
from PIL import Image

from chassis.errors import FailedPrecondition, TandemError
from chassis.tensors import is_finite_bfloat16
from checkpoint.backend_choice import read_choice
from checkpoint.manifest import read_manifest
from checkpoint.store import ModelStore
from processing import ImageProcessor, open_image_processor
from vision_service.backends import BACKENDS, BackendName, BackendOptions, OpenedHalf, RemoteBackend, open_backend
from vision_service.batcher import BatchConfig
from vision_service.image_encoder import ImageEncoder, RemoteImageEncoder, SharedResources

AUTO = "auto"  # the backend that is recorded beside the checkpoint

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLoader:
    """Loads vision halves from a model store."""

    store: ModelStore
    backends: tuple[BackendName, ...]  # in order of preference. Empty is the recorded one
    options: BackendOptions
    batching: BatchConfig
    resources: SharedResources

    async def load(self, tag: str) -> ImageEncoder:
        """Read, check and warm up a vision half.

        A backend that cannot be opened is replaced by the next one of the list.

        Raises:
            TandemError: the checkpoint is missing, or its vision half is invalid, or its last backend cannot be opened.
        """
        half, processor = await asyncio.to_thread(self._read, self.store.folder(tag))
        encoder = RemoteImageEncoder if isinstance(half.backend, RemoteBackend) else ImageEncoder
        return encoder(
            tag=tag,
            config=half.config,
            processor=processor,
            digest=half.digest,
            backend=half.backend,
            resources=self.resources,
            batching=self.batching,
        )

    def _read(self, folder: Path) -> tuple[OpenedHalf, ImageProcessor]:
        *preferred, last = self.backends or (self._recorded(folder),)
        for name in preferred:
            try:
                return self._open(name, folder)
            except TandemError as error:
                _log.warning(
                    "backend not used", tag=folder.name, backend=name, reason=error.reason, error=error.local_message
                )
            except Exception as error:  # of a library, for example if a GPU has no memory left
                _log.warning("backend not used", tag=folder.name, backend=name, reason="FAILED", error=str(error))
        return self._open(last, folder)

    def _recorded(self, folder: Path) -> BackendName:
        digest, device_type = read_manifest(folder).vision.digest, self.options.device.type
        choice = read_choice(folder, device_type, self.options.precision, vision_digest=digest)
        for name in BACKENDS:
            if name == choice.backend:
                return name
        raise FailedPrecondition(
            f"The recorded backend of {folder.name} is unknown here: choose one of {', '.join(BACKENDS)}.",
            reason="BAD_EXPORT",
        )

    def _open(self, name: BackendName, folder: Path) -> tuple[OpenedHalf, ImageProcessor]:
        half = open_backend(name, folder, self.options)
        # The first pass is slow, because it plans kernels and allocates memory. Run it before the first request.
        processor = open_image_processor(half.config, max_pixels=self.options.max_resized_pixels)
        [tokens] = half.backend.encode([processor.to_pixels(Image.new("RGB", (256, 256)))])
        if not is_finite_bfloat16(tokens):
            raise FailedPrecondition(
                f"The vision half of {folder.name} computes visual tokens that are not finite: import the checkpoint "
                "again, or choose another precision.",
                reason="BAD_CHECKPOINT",
            )
        return half, processor
