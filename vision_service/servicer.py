"""`tandem.v1.VisionService` over the process's models: translates between messages and `HostedVision`."""

from chassis.errors import InvalidArgument, TandemError
from chassis.tracing import span
from checkpoint.identity import DIGEST_BYTES, MAX_SALT_BYTES
from hosting import ModelCalls, ModelHost
from tandem.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from vision_service import metrics
from vision_service.hosted import NOT_CACHED, Encoded, HostedVision, ImageRequest, Source

SERVICE_NAME = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name

_SOURCES = {
    Source.ENCODED: vision_pb2.ENCODE_SOURCE_ENCODED,
    Source.CACHED: vision_pb2.ENCODE_SOURCE_CACHED,
    Source.IN_FLIGHT: vision_pb2.ENCODE_SOURCE_IN_FLIGHT,
    Source.SIMILAR: vision_pb2.ENCODE_SOURCE_SIMILAR,
}


class VisionServicer(ModelCalls[HostedVision], vision_pb2_grpc.VisionServiceServicer):
    """Answers `Encode` and the model calls; errors are raised and mapped by the server's interceptor."""

    def __init__(self, models: ModelHost[HostedVision]) -> None:
        self.models = models

    async def Encode(self, request: vision_pb2.EncodeRequest, context: object) -> vision_pb2.EncodeResponse:  # noqa: N802
        """Encode one image, or answer from what was encoded before."""
        try:
            _check(request)
            asked = ImageRequest(image=request.image, sha256=request.image_sha256, cache_salt=request.cache_salt)
            facts = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": request.tag}
            with span(f"embeddings {request.tag}", attributes=facts), self.models.lease(request.tag) as model:
                return _response(await model.encode(asked), model.digest)
        except TandemError as error:
            if error.reason != NOT_CACHED:  # which refuses nothing: it asks for the bytes
                metrics.REFUSALS.labels(error.reason).inc()
            raise


def _check(request: vision_pb2.EncodeRequest) -> None:
    if len(request.image_sha256) != DIGEST_BYTES:
        raise InvalidArgument(
            f"image_sha256 must have {DIGEST_BYTES} bytes, not {len(request.image_sha256)}.",
            reason="BAD_DIGEST",
            field="image_sha256",
        )
    if len(request.cache_salt) > MAX_SALT_BYTES:
        raise InvalidArgument(
            f"cache_salt must have at most {MAX_SALT_BYTES} bytes, not {len(request.cache_salt)}.",
            reason="BAD_SALT",
            field="cache_salt",
        )


def _response(encoded: Encoded, vision_digest: bytes) -> vision_pb2.EncodeResponse:
    embeddings = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=encoded.tokens.shape, data=encoded.tokens.data
    )
    response = vision_pb2.EncodeResponse(
        visual_tokens=tensor_pb2.VisualTokens(
            embeddings=embeddings, visual_key=encoded.visual_key, vision_digest=vision_digest
        ),
        timings=vision_pb2.EncodeTimings(
            decode_ms=1000 * encoded.decode_s,
            queue_ms=1000 * encoded.queue_s,
            forward_ms=1000 * encoded.forward_s,
            batch_size=encoded.batch_size,
        ),
        source=_SOURCES[encoded.source],
    )
    if encoded.similar is not None:
        response.similar.image_sha256 = encoded.similar.image_sha256
        response.similar.similarity = encoded.similar.similarity
    return response
