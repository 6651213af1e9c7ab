"""Pictures to visual tokens: the visual key, the cache, and the vision service on a miss."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from chassis.errors import Internal, InvalidArgument, TandemError, Unavailable
from chassis.tensors import check_tensor
from checkpoint.identity import visual_key
from gateway import metrics
from gateway.deadline import Deadline
from gateway.images import Picture
from gateway.stages import Replica, errors_of
from gateway.visual_cache import Found, VisualCache
from tandem.v1 import model_pb2, tensor_pb2, vision_pb2

if TYPE_CHECKING:
    from tandem.v1 import vision_pb2_grpc

    VisionReplica = Replica[vision_pb2_grpc.VisionServiceAsyncStub]


async def visual_tokens(
    picture: Picture,
    replica: "VisionReplica",
    *,
    cache_salt: bytes,
    cache: VisualCache,
    pins: AsyncExitStack,
    deadline: Deadline,
) -> Found:
    """Return the serialized `VisualTokens` of a picture; `pins` keeps them in the cache until it is closed.

    Raises:
        InvalidArgument: the vision service refuses the picture; `field` is where the request has it.
        TandemError: it cannot encode it now.
    """
    key = visual_key(encoder_id=replica.info.vision.encoder_id, cache_salt=cache_salt, image_sha256=picture.sha256)
    request = vision_pb2.EncodeRequest(
        tag=replica.info.tag, image=picture.data, image_sha256=picture.sha256, cache_salt=cache_salt
    )

    async def encode() -> bytes:
        return await _encode(request, replica, key, deadline)

    try:
        return await pins.enter_async_context(cache.use(key, encode))
    except InvalidArgument as error:
        # The same error goes to every request that waits for this picture, each with a place of its own for it.
        raise InvalidArgument(
            error.message, reason=error.reason, field=picture.field, metadata=error.metadata
        ) from error


async def _encode(request: vision_pb2.EncodeRequest, replica: "VisionReplica", key: bytes, deadline: Deadline) -> bytes:
    try:
        with errors_of("vision"):
            response = await replica.stub.Encode(request, timeout=deadline.remaining_s())
        _check(response.visual_tokens, replica.info, key)
    except TandemError as error:
        metrics.ENCODE_ERRORS.labels(error.reason).inc()
        raise
    return response.visual_tokens.SerializeToString()


def _check(tokens: tensor_pb2.VisualTokens, info: model_pb2.ModelInfo, key: bytes) -> None:
    """Check visual tokens before they may be kept and reused."""
    if tokens.visual_key != key or tokens.vision_digest != info.half_digest:
        # The tag was loaded anew, from other weights, since the service was last asked what it holds.
        raise Unavailable("The vision model has just changed.", reason="ENCODER_CHANGED", retry_after_s=1)
    shape = (info.vision.num_visual_tokens, info.vision.token_width)
    try:
        check_tensor(tokens.embeddings, shape=shape, field="embeddings")
    except InvalidArgument as error:
        raise Internal("The vision service answered with a wrong tensor.", reason="BAD_TENSOR") from error
