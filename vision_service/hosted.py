"""One vision half as the process serves it: what is known already, and the queue to its backend for the rest."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from chassis.cache_metrics import CACHE_REQUESTS
from chassis.errors import Internal, NotFound, Unavailable
from chassis.single_flight import SingleFlight
from chassis.tensors import is_finite_bfloat16
from checkpoint.config import ModelConfig
from checkpoint.identity import encoder_id, visual_key
from processing import PREPROCESSING
from tandem.v1 import model_pb2
from vision_service import metrics
from vision_service.backends import VisionBackend
from vision_service.batcher import BatchConfig, Batcher
from vision_service.decoding import Decoded, DecodePool
from vision_service.similar import Similar, SimilarImages
from vision_service.token_cache import TokenCache, VisualTokens

NOT_CACHED = "IMAGE_NOT_CACHED"

Pixels = NDArray[np.float32]  # [3, S, S]
TokenBits = NDArray[np.uint16]  # [K, D], bfloat16 bit patterns


class Source(Enum):
    """Where visual tokens came from, as `vision.proto` defines it; the value is what is counted."""

    ENCODED = "miss"
    CACHED = "hit"
    IN_FLIGHT = "in_flight"
    SIMILAR = "similar"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """An image that is asked for."""

    image: bytes  # the file; empty where only its digest came
    sha256: bytes  # of the file, 32 bytes
    cache_salt: bytes = b""  # the tenant's


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One image's visual tokens, where they came from and where their time went."""

    tokens: VisualTokens
    visual_key: bytes  # of the image that was encoded
    source: Source
    similar: Similar | None = None  # that image, where it is not the one asked for
    decode_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all models of the process share: workers, so that they take turns instead of each other's cores, and memory.

    Visual keys name the encoder, so two tags with the same vision half share visual tokens, and others cannot.
    """

    decoding: DecodePool
    forward: Executor  # of one thread
    turn: asyncio.Lock  # held during a forward pass
    cache: TokenCache
    flights: SingleFlight[bytes, Encoded] = field(default_factory=SingleFlight)  # by visual key
    similar: SimilarImages | None = None  # None is off


class HostedVision:
    """Encodes images with one vision half; made on the event loop that uses it."""

    def __init__(
        self,
        *,
        tag: str,
        config: ModelConfig,
        digest: bytes,
        backend: VisionBackend,
        shared: Shared,
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
        self._shared = shared
        self._batching = batching
        self._batcher: Batcher[Pixels, TokenBits] = Batcher(
            self._forward, config=batching, executor=shared.forward, turn=shared.turn
        )
        metrics.WAITING.labels(tag).set_function(lambda: self._batcher.num_waiting)

    async def encode(self, request: ImageRequest) -> Encoded:
        """Return the visual tokens of an image: those that are here, those under way, or else new ones.

        Raises:
            NotFound: only the digest came, and nothing is here (reason IMAGE_NOT_CACHED).
            InvalidArgument: the image is refused, or is not the one its digest names.
            ResourceExhausted: too many images are waiting.
            Internal: the model failed, or gave something that is not finite.
        """
        if request.image:
            # Before anything is shared: each caller answers for its own bytes.
            await self._shared.decoding.check(request.image, request.sha256)
        encoded = await self._find(request)
        CACHE_REQUESTS.labels(metrics.LEVEL, encoded.source.value).inc()
        return encoded

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model; the host adds tag, state and load time."""
        limits = self._shared.decoding.limits
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
                max_wait_ms=1000 * self._batching.max_wait_s,
                max_queue=self._batching.max_queue,
                max_cache_bytes=self._shared.cache.max_bytes,
            ),
        )

    async def close(self) -> None:
        """Stop the queue; the weights go with the last reference."""
        await self._batcher.close()
        metrics.WAITING.remove(self._tag)

    async def _find(self, request: ImageRequest) -> Encoded:
        key = visual_key(encoder_id=self.encoder_id, cache_salt=request.cache_salt, image_sha256=request.sha256)
        flights = self._shared.flights
        while True:
            with self._shared.cache.use(key) as tokens:
                if tokens is not None:
                    return Encoded(tokens=tokens, visual_key=key, source=Source.CACHED)
            joins = key in flights
            if not (request.image or joins):
                CACHE_REQUESTS.labels(metrics.LEVEL, "miss").inc()
                raise NotFound("The image's visual tokens are not at hand; send the image.", reason=NOT_CACHED)
            try:
                landed = await flights.run(key, lambda: self._encode(request, key))
            except Unavailable:
                if not joins:
                    raise
                # The tag it was encoded under is being unloaded; this one, of the same weights, is not.
                continue
            shares = landed.joined and landed.result.source is Source.ENCODED
            return replace(landed.result, source=Source.IN_FLIGHT) if shares else landed.result

    async def _encode(self, request: ImageRequest, key: bytes) -> Encoded:
        """Decode the image and run the model, unless it looks like one that is here."""
        decoded = await self._shared.decoding.decode(request.image, self.config.vision)
        metrics.DECODE_SECONDS.observe(decoded.decode_s)
        scope = (self.encoder_id, request.cache_salt)  # what one tenant sent never answers another
        encoded = self._find_similar(scope, decoded)
        if encoded is not None:
            return encoded
        answer = await self._batcher.submit(decoded.pixels)
        metrics.QUEUE_SECONDS.labels(self._tag).observe(answer.queue_s)
        if not is_finite_bfloat16(answer.result):
            raise Internal("The image's visual tokens are not finite.", reason="NOT_FINITE")
        tokens = VisualTokens.of(answer.result)
        self._shared.cache.put(key, tokens)
        if self._shared.similar is not None and decoded.thumbnail is not None:
            self._shared.similar.add(scope, decoded.thumbnail, visual_key=key, image_sha256=request.sha256)
        return Encoded(
            tokens=tokens,
            visual_key=key,
            source=Source.ENCODED,
            decode_s=decoded.decode_s,
            queue_s=answer.queue_s,
            forward_s=answer.run_s,
            batch_size=answer.batch_size,
        )

    def _find_similar(self, scope: tuple[bytes, bytes], decoded: Decoded) -> Encoded | None:
        if self._shared.similar is None or decoded.thumbnail is None:
            return None
        for similar in self._shared.similar.find(scope, decoded.thumbnail):
            with self._shared.cache.use(similar.visual_key) as tokens:
                if tokens is not None:
                    return Encoded(
                        tokens=tokens,
                        visual_key=similar.visual_key,
                        source=Source.SIMILAR,
                        similar=similar,
                        decode_s=decoded.decode_s,
                    )
        return None

    def _forward(self, images: Sequence[Pixels]) -> list[TokenBits]:
        started = time.perf_counter()
        bits_BKD = self._backend.encode(np.stack(images))
        metrics.FORWARD_SECONDS.labels(self._tag).observe(time.perf_counter() - started)
        metrics.BATCH_SIZE.labels(self._tag).observe(len(images))
        # Copies, so that a caller that keeps its tokens does not keep the whole batch.
        return [bits_KD.copy() for bits_KD in bits_BKD]
