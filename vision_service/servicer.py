"""`tandem.v1.VisionService` over the process's models: translates between messages and `HostedVision`."""

from chassis.errors import InvalidArgument, TandemError
from chassis.models import ModelCalls, ModelHost
from checkpoint.identity import DIGEST_BYTES, visual_key
from tandem.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from vision_service import metrics
from vision_service.hosted import Encoded, HostedVision

SERVICE_NAME = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name

_MAX_SALT_BYTES = 64


class VisionServicer(ModelCalls[HostedVision], vision_pb2_grpc.VisionServiceServicer):
    """Answers `Encode` and the model calls; errors are raised and mapped by the server's interceptor."""

    def __init__(self, models: ModelHost[HostedVision]) -> None:
        self.models = models

    async def Encode(self, request: vision_pb2.EncodeRequest, context: object) -> vision_pb2.EncodeResponse:  # noqa: N802
        """Encode one picture."""
        try:
            _check(request)
            with self.models.lease(request.tag) as model:
                encoded = await model.encode(request.image, request.image_sha256)
                key = visual_key(
                    encoder_id=model.encoder_id, cache_salt=request.cache_salt, image_sha256=request.image_sha256
                )
                return _response(encoded, key, model.digest)
        except TandemError as error:
            metrics.REFUSALS.labels(error.reason).inc()
            raise


def _check(request: vision_pb2.EncodeRequest) -> None:
    if len(request.image_sha256) != DIGEST_BYTES:
        raise InvalidArgument(
            f"image_sha256 must have {DIGEST_BYTES} bytes, not {len(request.image_sha256)}.",
            reason="BAD_DIGEST",
            field="image_sha256",
        )
    if len(request.cache_salt) > _MAX_SALT_BYTES:
        raise InvalidArgument(
            f"cache_salt must have at most {_MAX_SALT_BYTES} bytes, not {len(request.cache_salt)}.",
            reason="BAD_SALT",
            field="cache_salt",
        )


def _response(encoded: Encoded, key: bytes, vision_digest: bytes) -> vision_pb2.EncodeResponse:
    embeddings = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16,
        shape=encoded.tokens.shape,
        data=encoded.tokens.astype("<u2", copy=False).tobytes(),
    )
    return vision_pb2.EncodeResponse(
        visual_tokens=tensor_pb2.VisualTokens(embeddings=embeddings, visual_key=key, vision_digest=vision_digest),
        timings=vision_pb2.EncodeTimings(
            decode_ms=1000 * encoded.decode_s,
            queue_ms=1000 * encoded.queue_s,
            forward_ms=1000 * encoded.forward_s,
            batch_size=encoded.batch_size,
        ),
    )
