"""Images to visual tokens: from the nearest cache that has them, and from the vision service where none has."""

import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prometheus_client import Counter

from chassis.deadline import Deadline
from chassis.errors import Internal, InvalidArgument, NotFound, TandemError, Unavailable
from checkpoint.identity import visual_key
from gateway.images.entry import Entry, ForeignError, Wanted
from gateway.images.memory_cache import Found, VisualCache
from gateway.images.store import RequestImage
from gateway.stages import Replica, translate_errors, with_failover
from tandem.v1 import gateway_pb2, vision_pb2

ENCODE_ERRORS = Counter(
    "tandem_gateway_encode_errors", "Images the vision service did not encode, by reason.", ["reason"]
)


if TYPE_CHECKING:
    from gateway.images.redis_cache import SharedCache  # brings the Redis client, which only some gateways need
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
class _Search:
    """One image that is looked for."""

    image: bytes  # the file
    request: vision_pb2.EncodeRequest  # names it by digest alone
    replica: "VisionReplica"
    deadline: Deadline

    @property
    def wanted(self) -> Wanted:
        """The visual tokens that answer for it."""
        return self.tokens_of(self.request.image_sha256)

    def tokens_of(self, image_sha256: bytes) -> Wanted:
        """Return which visual tokens an image has with this encoder, for this tenant."""
        info = self.replica.info
        key = visual_key(
            encoder_id=info.vision.encoder_id, cache_salt=self.request.cache_salt, image_sha256=image_sha256
        )
        shape = (info.vision.num_visual_tokens, info.vision.token_width)
        return Wanted(visual_key=key, vision_digest=info.half_digest, shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualTokenSource:
    """Looks in this process, then in Redis, then asks the vision service; who lacked them gets them on the way back."""

    memory: VisualCache
    shared: "SharedCache | None" = None
    digest_first_bytes: int  # the vision service gets the digest of larger images first, and their bytes if it must
    reuse: bool = True  # False has every image encoded for every request

    async def get(
        self,
        image: RequestImage,
        replica: "VisionReplica",
        *,
        cache_salt: bytes,
        pins: AsyncExitStack,
        deadline: Deadline,
    ) -> Found:
        """Return the visual tokens of an image; `pins` keeps them in memory until it is closed.

        Raises:
            InvalidArgument: the vision service refuses the image; `field` is where the request has it.
            TandemError: it cannot encode it now.
        """
        # Under a salt of its own an image is new to every cache on the way, the decoder's included.
        salt = cache_salt if self.reuse else secrets.token_bytes(_FRESH_SALT_BYTES)
        request = vision_pb2.EncodeRequest(tag=replica.info.tag, image_sha256=image.sha256, cache_salt=salt)
        search = _Search(image=image.data, request=request, replica=replica, deadline=deadline)
        try:
            return await pins.enter_async_context(self.memory.use(search.wanted.visual_key, lambda: self._find(search)))
        except InvalidArgument as error:
            # The same error goes to every request that waits for this image, each with a place of its own for it.
            raise InvalidArgument(
                error.message, reason=error.reason, field=image.field, metadata=error.metadata
            ) from error

    async def _find(self, search: _Search) -> Found:
        """Return what is not in memory."""
        if self.shared is None or not self.reuse:
            return await self._encode(search)
        entry = await self.shared.get(search.wanted)
        if entry is not None:
            return Found(entry, search.wanted.visual_key, gateway_pb2.CACHE_LEVEL_SHARED)
        found = await self._encode(search)
        if found.visual_key == search.wanted.visual_key:
            self.shared.put(found.visual_key, found.entry)
        return found

    async def _encode(self, search: _Search) -> Found:
        """Ask the vision service, one replica after the other where they fail."""
        return await with_failover(
            search.replica,
            lambda replica: self._encode_at(replace(search, replica=replica)),
            may_retry=lambda: True,
        )

    async def _encode_at(self, search: _Search) -> Found:
        digest_first = self.reuse and len(search.image) >= self.digest_first_bytes
        try:
            response = await _ask_by_digest(search) if digest_first else None
            if response is None:
                response = await _ask(search, search.image)
            return _checked(response, search)
        except TandemError as error:
            ENCODE_ERRORS.labels(error.reason).inc()
            raise


async def _ask_by_digest(search: _Search) -> vision_pb2.EncodeResponse | None:
    """Return what the vision service has without seeing the image, None where it must see it."""
    try:
        return await _ask(search, b"")
    except NotFound as error:
        if error.reason != _NOT_CACHED:
            raise
        return None


async def _ask(search: _Search, image: bytes) -> vision_pb2.EncodeResponse:
    request = vision_pb2.EncodeRequest(image=image)
    request.MergeFrom(search.request)
    with translate_errors("vision"):
        return await search.replica.stub.Encode(request, timeout=search.deadline.remaining_s())


def _checked(response: vision_pb2.EncodeResponse, search: _Search) -> Found:
    """Check visual tokens before they may be used, kept and reused."""
    tokens = response.visual_tokens
    similar = response.similar if response.source == vision_pb2.ENCODE_SOURCE_SIMILAR else None
    # Those of a similar image go on under that image's own key: what the decoder caches by it stays true.
    wanted = search.wanted if similar is None else search.tokens_of(similar.image_sha256)
    try:
        wanted.check_key(tokens)
        wanted.check_embeddings(tokens)
    except ForeignError:
        # The tag was loaded anew, from other weights, since the service was last asked what it holds.
        raise Unavailable("The vision model has just changed.", reason="ENCODER_CHANGED", retry_after_s=1) from None
    except InvalidArgument as error:
        raise Internal("The vision service answered with a wrong tensor.", reason="BAD_TENSOR") from error
    level = _LEVELS.get(response.source, gateway_pb2.CACHE_LEVEL_MISS)
    return Found(Entry.of(tokens.SerializeToString()), wanted.visual_key, level, similar)
