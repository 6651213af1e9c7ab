"""Encode images with one vision half, through caches and batches."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Gauge, Histogram

from chassis.cache_metrics import CACHE_REQUESTS
from chassis.errors import Internal, NotFound, Unavailable
from chassis.single_flight import SingleFlight
from chassis.tensors import is_finite_bfloat16
from checkpoint.families import ModelConfig
from checkpoint.identity import encoder_id, visual_key
from processing import ImageProcessor, Pixels
from tandem.v1 import model_pb2
from vision_service.backends import RemoteBackend, VisionBackend
from vision_service.batcher import MODEL_DRAINING, BatchConfig, Batcher
from vision_service.decode_pool import DecodedImage, DecodePool
from vision_service.remote_queue import RemoteQueue
from vision_service.similar_images import SimilarImage, SimilarityIndex
from vision_service.token_cache import LEVEL, TokenCache, VisualTokens

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DECODE_SECONDS = Histogram(
    "tandem_vision_decode_seconds", "Time to check, decode and resize one image, seconds.", buckets=_BUCKETS_S
)
QUEUE_SECONDS = Histogram(
    "tandem_vision_queue_seconds", "Time that one image waits for its batch, seconds.", ["tag"], buckets=_BUCKETS_S
)
FORWARD_SECONDS = Histogram(
    "tandem_vision_forward_seconds", "Time of the forward pass of one batch, seconds.", ["tag"], buckets=_BUCKETS_S
)
BATCH_SIZE = Histogram(
    "tandem_vision_batch_size", "Images in one forward pass.", ["tag"], buckets=(1, 2, 4, 8, 16, 32, 64)
)
WAITING = Gauge("tandem_vision_waiting", "Decoded images that wait for a batch.", ["tag"])

NOT_CACHED = "IMAGE_NOT_CACHED"

TokenBits = NDArray[np.uint16]  # [N, levels x D], bfloat16 bit patterns


class Source(Enum):
    """Source of visual tokens, as in `vision.proto`. Values label metrics."""

    ENCODED = "miss"
    CACHED = "hit"
    IN_FLIGHT = "in_flight"
    SIMILAR = "similar"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """A request for the visual tokens of one image."""

    image: bytes  # the file. Empty in a request by digest alone
    sha256: bytes  # of the file, 32 bytes
    cache_salt: bytes = b""  # the tenant's


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """Visual tokens of one image, with their source and timings."""

    tokens: VisualTokens
    visual_key: bytes  # of the image that was encoded
    source: Source
    similar: SimilarImage | None = None  # the image that was encoded, if it is not the requested one
    decode_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedResources:
    """Threads and caches that all models of the process share.

    With shared threads, the models do not compete for cores. Visual keys name the encoder, so the cache is shared by
    tags with the same vision half only.
    """

    decode_pool: DecodePool
    forward_executor: Executor  # one thread
    forward_lock: asyncio.Lock  # acquired for each forward pass
    cache: TokenCache
    in_flight: SingleFlight[bytes, EncodedImage] = field(default_factory=SingleFlight)  # by visual key
    similar_images: SimilarityIndex | None = None  # None is off


class ImageEncoder:
    """Encodes images with one vision half.

    For one event loop. An image is looked up in the cache, then among the encodings in flight, then among similar
    images. Otherwise it is decoded and joins a batch.
    """

    def __init__(
        self,
        *,
        tag: str,
        config: ModelConfig,
        processor: ImageProcessor,
        digest: bytes,
        backend: VisionBackend,
        resources: SharedResources,
        batching: BatchConfig,
    ) -> None:
        """Start the queue to the backend.

        Args:
            tag: of the checkpoint, for metrics.
            config: of the checkpoint.
            processor: makes the model's input from decoded images.
            digest: of the vision half.
            backend: runs the vision half.
            resources: shared by all encoders of the process.
            batching: limits of batches and queue.
        """
        self.config = config
        self.processor = processor
        self.digest = digest
        self.encoder_id = encoder_id(
            vision_digest=digest,
            preprocessing=processor.preprocessing,
            precision=backend.precision,
            backend=backend.name,
            export_digest=backend.export_digest,
        )
        self._tag = tag
        self._backend = backend
        self._resources = resources
        self._batching = batching
        # Visual tokens of another image can answer only if every image has as many.
        self._similar_images = resources.similar_images if config.num_visual_tokens is not None else None
        self._queue: Batcher[Pixels, TokenBits] | RemoteQueue = (
            RemoteQueue(backend, max_in_flight=batching.max_queue)
            if isinstance(backend, RemoteBackend)
            else Batcher(
                self._forward,
                config=batching,
                executor=resources.forward_executor,
                lock=resources.forward_lock,
                size_of=lambda pixels: pixels.shape[1] * pixels.shape[2],
            )
        )
        WAITING.labels(tag).set_function(lambda: self._queue.num_waiting)

    async def encode(self, request: ImageRequest) -> EncodedImage:
        """Return the visual tokens of an image.

        Raises:
            NotFound: reason 'IMAGE_NOT_CACHED', a request by digest alone found nothing.
            InvalidArgument: the image is rejected, or does not match its digest.
            ResourceExhausted: reason 'QUEUE_FULL'.
            Internal: the model failed, or its result is not finite.
        """
        if request.image:
            # Check before anything is shared: a wrong image must not answer for another caller's digest.
            await self._resources.decode_pool.check(request.image, request.sha256)
        encoded = await self._find_or_encode(request)
        CACHE_REQUESTS.labels(LEVEL, encoded.source.value).inc()
        return encoded

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model, without tag, state and load time."""
        limits = self._resources.decode_pool.limits
        return model_pb2.ModelInfo(
            half_digest=self.digest,
            backend=self._backend.name,
            device=self._backend.device,
            precision=self._backend.precision,
            num_parameters=self._backend.num_parameters,
            num_weight_bytes=self._backend.num_weight_bytes,
            vision=model_pb2.VisionModelInfo(
                encoder_id=self.encoder_id,
                image_size=self.processor.square_side,
                num_visual_tokens=self.config.num_visual_tokens or 0,
                token_width=self.config.token_width,
                num_levels=self.config.num_levels,
                max_resized_pixels=self.processor.max_pixels,
                max_visual_tokens=self.processor.max_visual_tokens,
                max_image_bytes=limits.max_bytes,
                max_image_pixels=limits.max_pixels,
                max_batch_size=self._batching.max_batch_size,
                max_wait_ms=1000 * self._batching.max_wait_s,
                max_queue=self._batching.max_queue,
                max_cache_bytes=self._resources.cache.max_bytes,
            ),
        )

    async def close(self) -> None:
        """Stop the queue and fail the waiting requests."""
        await self._queue.close()
        WAITING.remove(self._tag)

    async def _find_or_encode(self, request: ImageRequest) -> EncodedImage:
        key = visual_key(encoder_id=self.encoder_id, cache_salt=request.cache_salt, image_sha256=request.sha256)
        in_flight = self._resources.in_flight
        while True:
            with self._resources.cache.use(key) as tokens:
                if tokens is not None:
                    return EncodedImage(tokens=tokens, visual_key=key, source=Source.CACHED)
            joins = key in in_flight
            if not (request.image or joins):
                CACHE_REQUESTS.labels(LEVEL, "miss").inc()
                raise NotFound("The visual tokens of this image are not cached, send the image.", reason=NOT_CACHED)
            try:
                encoding = await in_flight.run(key, lambda: self._encode(request, key))
            except Unavailable as error:
                if not joins or error.reason != MODEL_DRAINING:
                    raise
                # Another tag with the same weights began this encoding and is being unloaded. Encode again here.
                continue
            shares = encoding.joined and encoding.result.source is Source.ENCODED
            return replace(encoding.result, source=Source.IN_FLIGHT) if shares else encoding.result

    async def _encode(self, request: ImageRequest, key: bytes) -> EncodedImage:
        """Decode and encode, unless a similar image is cached."""
        decoded = await self._resources.decode_pool.decode(request.image, self.processor)
        DECODE_SECONDS.observe(decoded.decode_s)
        scope = (self.encoder_id, request.cache_salt)  # images of one tenant never answer another
        encoded = self._find_similar(scope, decoded)
        if encoded is not None:
            return encoded
        batched = await self._queue.submit(decoded.pixels)
        QUEUE_SECONDS.labels(self._tag).observe(batched.queue_s)
        if isinstance(self._queue, RemoteQueue):
            FORWARD_SECONDS.labels(self._tag).observe(batched.run_s)
        if not is_finite_bfloat16(batched.result):
            raise Internal("The visual tokens of the image are not finite.", reason="NOT_FINITE")
        tokens = VisualTokens.of(batched.result, decoded.grid)
        self._resources.cache.put(key, tokens)
        if self._similar_images is not None and decoded.thumbnail is not None:
            self._similar_images.add(scope, decoded.thumbnail, visual_key=key, image_sha256=request.sha256)
        return EncodedImage(
            tokens=tokens,
            visual_key=key,
            source=Source.ENCODED,
            decode_s=decoded.decode_s,
            queue_s=batched.queue_s,
            forward_s=batched.run_s,
            batch_size=batched.batch_size,
        )

    def _find_similar(self, scope: tuple[bytes, bytes], decoded: DecodedImage) -> EncodedImage | None:
        if self._similar_images is None or decoded.thumbnail is None:
            return None
        for similar in self._similar_images.find(scope, decoded.thumbnail):
            with self._resources.cache.use(similar.visual_key) as tokens:
                if tokens is not None:
                    return EncodedImage(
                        tokens=tokens,
                        visual_key=similar.visual_key,
                        source=Source.SIMILAR,
                        similar=similar,
                        decode_s=decoded.decode_s,
                    )
        return None

    def _forward(self, images: Sequence[Pixels]) -> list[TokenBits]:
        started = time.perf_counter()
        tokens = self._backend.encode(images)
        FORWARD_SECONDS.labels(self._tag).observe(time.perf_counter() - started)
        BATCH_SIZE.labels(self._tag).observe(len(images))
        return tokens


class RemoteImageEncoder(ImageEncoder):
    """Encodes images with a vision half in another process."""

    async def is_ready(self) -> bool:
        """Return whether the other process can encode now."""
        return isinstance(self._backend, RemoteBackend) and await self._backend.is_ready()
