"""Get visual tokens from the caches or the vision service."""

import secrets
from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prometheus_client import Counter

from chassis.deadline import Deadline
from chassis.errors import Internal, InvalidArgument, NotFound, TandemError, Unavailable
from checkpoint.identity import visual_key
from gateway.images.entry import Entry, ExpectedTokens, ForeignTokensError, TokenShape
from gateway.images.memory_cache import MemoryCache, SourcedTokens
from gateway.images.store import RequestImage
from gateway.stages import Replica, translate_errors, with_failover
from tandem.v1 import gateway_pb2, vision_pb2

ENCODE_ERRORS = Counter(
    "tandem_gateway_encode_errors", "Images that the vision service did not encode, by reason.", ["reason"]
)


if TYPE_CHECKING:
    from gateway.images.redis_cache import RedisCache  # imports the Redis client, which few gateways need
    from tandem.v1 import vision_pb2_grpc

    VisionReplica = Replica[vision_pb2_grpc.VisionServiceAsyncStub]

_NOT_CACHED = "IMAGE_NOT_CACHED"
_FRESH_SALT_BYTES = 32
_LEVELS = {
    vision_pb2.ENCODE_SOURCE_CACHED: gateway_pb2.CACHE_LEVEL_VISION,
    vision_pb2.ENCODE_SOURCE_IN_FLIGHT: gateway_pb2.CACHE_LEVEL_IN_FLIGHT,
    vision_pb2.ENCODE_SOURCE_SIMILAR: gateway_pb2.CACHE_LEVEL_SIMILAR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lookup:
    """One image, and the replica to encode it."""

    image: bytes  # the file
    shape: TokenShape
    request: vision_pb2.EncodeRequest  # with the digest of the image, without its bytes
    replica: "VisionReplica"
    deadline: Deadline

    @property
    def expected(self) -> ExpectedTokens:
        """The visual tokens of this image."""
        return self.expected_for(self.request.image_sha256)

    def expected_for(self, image_sha256: bytes) -> ExpectedTokens:
        """Return the expected visual tokens of an image."""
        info = self.replica.info
        key = visual_key(
            encoder_id=info.vision.encoder_id, cache_salt=self.request.cache_salt, image_sha256=image_sha256
        )
        return ExpectedTokens(
            visual_key=key, vision_digest=info.half_digest, shape=self.shape, token_width=info.vision.token_width
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualTokenSource:
    """Looks in memory, in Redis, then asks the vision service.

    Caches that missed are filled.
    """

    memory: MemoryCache
    redis: "RedisCache | None" = None
    digest_first_bytes: int  # images from this size are asked for by digest before their bytes are sent
    reuse: bool = True  # False encodes every image of every request

    async def get(
        self,
        image: RequestImage,
        shape: TokenShape,
        replica: "VisionReplica",
        *,
        cache_salt: bytes,
        pins: AsyncExitStack,
        deadline: Deadline,
    ) -> SourcedTokens:
        """Return the visual tokens of an image.

        Args:
            image: the image, with its bytes.
            shape: of its visual tokens.
            replica: the vision replica to try first.
            cache_salt: the tenant's. Tenants with different salts share no visual tokens.
            pins: keeps the tokens in the memory cache until it is closed.
            deadline: the request's.

        Raises:
            InvalidArgument: the vision service rejects the image. `field` is the image's field in the request.
            TandemError: the image cannot be encoded now.
        """
        # A fresh salt makes every cache miss, also the KV cache of the decoder.
        salt = cache_salt if self.reuse else secrets.token_bytes(_FRESH_SALT_BYTES)
        request = vision_pb2.EncodeRequest(tag=replica.info.tag, image_sha256=image.sha256, cache_salt=salt)
        lookup = _Lookup(image=image.data, shape=shape, request=request, replica=replica, deadline=deadline)
        try:
            tokens = self.memory.use(lookup.expected.visual_key, lambda: self._fetch(lookup))
            return await pins.enter_async_context(tokens)
        except InvalidArgument as error:
            # Several requests may wait for this image. Each has it in another field.
            raise InvalidArgument(
                error.message, reason=error.reason, field=image.field, metadata=error.metadata
            ) from error

    async def _fetch(self, lookup: _Lookup) -> SourcedTokens:
        """Look in Redis, then ask the vision service."""
        if self.redis is None or not self.reuse:
            return await self._encode(lookup)
        expected = lookup.expected
        entry = await self.redis.get(expected)
        if entry is not None:
            return SourcedTokens(entry, expected.visual_key, gateway_pb2.CACHE_LEVEL_SHARED)
        tokens = await self._encode(lookup)
        if tokens.visual_key == expected.visual_key:
            self.redis.put(tokens.visual_key, tokens.entry)
        return tokens

    async def _encode(self, lookup: _Lookup) -> SourcedTokens:
        """Ask the vision service, with failover."""
        return await with_failover(
            lookup.replica,
            lambda replica: self._encode_at(replace(lookup, replica=replica)),
            may_retry=lambda: True,
        )

    async def _encode_at(self, lookup: _Lookup) -> SourcedTokens:
        digest_first = self.reuse and len(lookup.image) >= self.digest_first_bytes
        try:
            response = await _request_by_digest(lookup) if digest_first else None
            if response is None:
                response = await _request(lookup, lookup.image)
            return _verified(response, lookup)
        except TandemError as error:
            ENCODE_ERRORS.labels(error.reason).inc()
            raise


async def _request_by_digest(lookup: _Lookup) -> vision_pb2.EncodeResponse | None:
    """Return cached tokens, None if the service needs the image."""
    try:
        return await _request(lookup, b"")
    except NotFound as error:
        if error.reason != _NOT_CACHED:
            raise
        return None


async def _request(lookup: _Lookup, image: bytes) -> vision_pb2.EncodeResponse:
    """Return the whole response, its chunks joined."""
    request = vision_pb2.EncodeRequest(image=image)
    request.MergeFrom(lookup.request)
    call = None
    try:
        with translate_errors("vision"):
            call = lookup.replica.stub.Encode(request, timeout=lookup.deadline.remaining_s())
            return await _joined(call, max_bytes=lookup.expected.num_bytes)
    finally:
        if call is not None:
            call.cancel()  # does nothing after the end of the call


async def _joined(call: AsyncIterable[vision_pb2.EncodeResponse], *, max_bytes: int) -> vision_pb2.EncodeResponse:
    """Return the first message, with the data of all."""
    messages = aiter(call)
    response = await anext(messages, None)
    if response is None:
        raise Internal("The vision service ended a call without a response.", reason="VISION_FAILED")
    chunks = [response.visual_tokens.embeddings.data]
    num_bytes = len(chunks[0])
    # More bytes than expected fail the check of the tensor, so it is enough to read one message beyond.
    while num_bytes <= max_bytes and (message := await anext(messages, None)) is not None:
        chunks.append(message.data_chunk)
        num_bytes += len(message.data_chunk)
    if len(chunks) > 1:
        response.visual_tokens.embeddings.data = b"".join(chunks)
    return response


def _verified(response: vision_pb2.EncodeResponse, lookup: _Lookup) -> SourcedTokens:
    """Return the visual tokens of a response, verified."""
    tokens = response.visual_tokens
    similar = response.similar if response.source == vision_pb2.ENCODE_SOURCE_SIMILAR else None
    # The tokens of a similar image keep that image's key, so that the decoder's cache by this key stays correct.
    expected = lookup.expected if similar is None else lookup.expected_for(similar.image_sha256)
    try:
        expected.check_key(tokens)
        expected.check_embeddings(tokens)
    except ForeignTokensError:
        # The tag was reloaded with other weights since the last refresh of the stage.
        raise Unavailable(
            "The vision model has just changed, retry the request.", reason="ENCODER_CHANGED", retry_after_s=1
        ) from None
    except InvalidArgument as error:
        raise Internal("The vision service returned an invalid tensor.", reason="BAD_TENSOR") from error
    level = _LEVELS.get(response.source, gateway_pb2.CACHE_LEVEL_MISS)
    return SourcedTokens(Entry.of(tokens.SerializeToString()), expected.visual_key, level, similar)
