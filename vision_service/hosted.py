"""One vision half as the process serves it: its backend, its queue, its identity."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chassis.errors import FailedPrecondition, Internal
from checkpoint.config import ModelConfig
from checkpoint.identity import encoder_id
from checkpoint.store import ModelStore
from checkpoint.weights import load_half
from tandem.v1 import model_pb2
from vision_service import metrics
from vision_service.backends import VisionBackend
from vision_service.backends.torch_backend import TorchBackend
from vision_service.batcher import BatchConfig, Batcher
from vision_service.decoding import DecodePool
from vision_service.images import PREPROCESSING

# A bfloat16 is not finite exactly when all eight bits of its exponent are set.
_EXPONENT = np.uint16(0x7F80)

Pixels = NDArray[np.float32]  # [3, S, S]
TokenBits = NDArray[np.uint16]  # [K, D], bfloat16 bit patterns


@dataclass(frozen=True, slots=True)
class Encoded:
    """One picture's visual tokens and where its time went."""

    tokens: TokenBits
    decode_s: float
    queue_s: float
    forward_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Workers:
    """What all models of the process share, so that they take turns instead of each other's cores."""

    decoding: DecodePool
    forward: Executor  # of one thread
    turn: asyncio.Lock  # held during a forward pass


class HostedVision:
    """Encodes pictures with one vision half; made on the event loop that uses it."""

    def __init__(
        self,
        *,
        tag: str,
        config: ModelConfig,
        digest: bytes,
        backend: VisionBackend,
        workers: Workers,
        batching: BatchConfig,
    ) -> None:
        self.config = config
        self.digest = digest
        self.encoder_id = encoder_id(
            vision_digest=digest,
            preprocessing=PREPROCESSING,
            precision=backend.precision,
            backend=backend.name,
        )
        self._tag = tag
        self._backend = backend
        self._decoding = workers.decoding
        self._batching = batching
        self._batcher: Batcher[Pixels, TokenBits] = Batcher(
            self._forward, config=batching, executor=workers.forward, turn=workers.turn
        )

    async def encode(self, image: bytes, image_sha256: bytes) -> Encoded:
        """Return the visual tokens of a picture file.

        Raises:
            InvalidArgument: the picture is refused, or is not the one its digest names.
            ResourceExhausted: too many pictures are waiting.
            Internal: the model failed, or gave something that is not finite.
        """
        decoded = await self._decoding.decode(image, image_sha256, self.config.vision)
        metrics.DECODE_SECONDS.observe(decoded.decode_s)
        answer = await self._batcher.submit(decoded.pixels)
        metrics.QUEUE_SECONDS.labels(self._tag).observe(answer.queue_s)
        if not _is_finite(answer.result):
            raise Internal("The picture's visual tokens are not finite.", reason="NOT_FINITE")
        return Encoded(answer.result, decoded.decode_s, answer.queue_s, answer.run_s, answer.batch_size)

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model; the host adds tag, state and load time."""
        limits = self._decoding.limits
        return model_pb2.ModelInfo(
            half_digest=self.digest,
            backend=self._backend.name,
            device=self._backend.device,
            precision=self._backend.precision,
            num_parameters=self._backend.num_parameters,
            num_weight_bytes=self._backend.num_weight_bytes,
            vision=model_pb2.VisionModelInfo(
                encoder_id=self.encoder_id,
                image_size=self.config.vision.image_size,
                num_visual_tokens=self.config.num_visual_tokens,
                token_width=self.config.language.width,
                max_image_bytes=limits.max_bytes,
                max_image_pixels=limits.max_pixels,
                max_batch_size=self._batching.max_batch_size,
            ),
        )

    async def close(self) -> None:
        """Stop the queue; the weights go with the last reference."""
        await self._batcher.close()

    def _forward(self, pictures: Sequence[Pixels]) -> list[TokenBits]:
        started = time.perf_counter()
        bits_BKD = self._backend.encode(np.stack(pictures))
        metrics.FORWARD_SECONDS.labels(self._tag).observe(time.perf_counter() - started)
        metrics.BATCH_SIZE.labels(self._tag).observe(len(pictures))
        # Copies, so that a caller that keeps its tokens does not keep the whole batch.
        return [bits_KD.copy() for bits_KD in bits_BKD]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLoader:
    """Reads vision halves of a model store and makes them ready."""

    store: ModelStore
    dtype: torch.dtype
    device: torch.device
    batching: BatchConfig
    workers: Workers

    async def load(self, tag: str) -> HostedVision:
        """Read, check and warm the vision half of a checkpoint.

        Raises:
            TandemError: there is no such checkpoint, or it does not hold a vision half that works.
        """
        config, digest, backend = await asyncio.to_thread(self._read, tag)
        return HostedVision(
            tag=tag, config=config, digest=digest, backend=backend, workers=self.workers, batching=self.batching
        )

    def _read(self, tag: str) -> tuple[ModelConfig, bytes, VisionBackend]:
        half = load_half(self.store.folder(tag), "vision", dtype=self.dtype, device=self.device)
        backend = TorchBackend(half.config, half.tensors, dtype=self.dtype, device=self.device)
        # The first pass plans kernels and takes memory: better now than in somebody's request.
        side = half.config.vision.image_size
        if not _is_finite(backend.encode(np.zeros((1, 3, side, side), dtype=np.float32))):
            raise FailedPrecondition(
                f"The vision half of {tag} gives visual tokens that are not finite.", reason="BAD_CHECKPOINT"
            )
        return half.config, half.digest, backend


def _is_finite(bits: NDArray[np.uint16]) -> bool:
    return not bool(np.any((bits & _EXPONENT) == _EXPONENT))
