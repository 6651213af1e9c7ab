"""Serve `tandem.v1.VisionService` with the models of this process."""

from collections.abc import AsyncIterator, Iterator

from prometheus_client import Counter

from chassis.errors import InvalidArgument, TandemError
from chassis.tensors import split_data
from chassis.tracing import span
from checkpoint.identity import DIGEST_BYTES, MAX_SALT_BYTES
from hosting import ModelCalls, ModelHost
from tandem.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from vision_service.image_encoder import NOT_CACHED, EncodedImage, ImageEncoder, ImageRequest, Source

REJECTIONS = Counter("tandem_vision_refusals", "Images that were not encoded, by reason.", ["reason"])

SERVICE_NAME = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name

_SOURCES = {
    Source.ENCODED: vision_pb2.ENCODE_SOURCE_ENCODED,
    Source.CACHED: vision_pb2.ENCODE_SOURCE_CACHED,
    Source.IN_FLIGHT: vision_pb2.ENCODE_SOURCE_IN_FLIGHT,
    Source.SIMILAR: vision_pb2.ENCODE_SOURCE_SIMILAR,
}


class VisionServicer(ModelCalls[ImageEncoder], vision_pb2_grpc.VisionServiceServicer):
    """Translates between messages and `ImageEncoder`.

    Errors are raised. The server's interceptor sends them.
    """

    def __init__(self, models: ModelHost[ImageEncoder]) -> None:
        self.models = models

    async def Encode(  # noqa: N802
        self, request: vision_pb2.EncodeRequest, context: object
    ) -> AsyncIterator[vision_pb2.EncodeResponse]:
        """Return the visual tokens of one image, in chunks."""
        try:
            _validate(request)
            image_request = ImageRequest(
                image=request.image, sha256=request.image_sha256, cache_salt=request.cache_salt
            )
            attributes = {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": request.tag}
            with span(f"embeddings {request.tag}", attributes=attributes), self.models.lease(request.tag) as encoder:
                encoded = await encoder.encode(image_request)
                digest = encoder.digest
        except TandemError as error:
            if error.reason != NOT_CACHED:  # no rejection: the client sends the bytes next
                REJECTIONS.labels(error.reason).inc()
            raise
        for response in _responses(encoded, digest):
            yield response


def _validate(request: vision_pb2.EncodeRequest) -> None:
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


def _responses(encoded: EncodedImage, vision_digest: bytes) -> Iterator[vision_pb2.EncodeResponse]:
    """Yield one message with every field, then chunks of data."""
    chunks = split_data(encoded.tokens.data)
    embeddings = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=encoded.tokens.shape, data=next(chunks)
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
    if encoded.tokens.grid is not None:
        rows, columns = encoded.tokens.grid
        response.visual_tokens.grid.CopyFrom(tensor_pb2.VisualGrid(rows=rows, columns=columns))
    if encoded.similar is not None:
        response.similar.image_sha256 = encoded.similar.image_sha256
        response.similar.similarity = encoded.similar.similarity
    yield response
    for chunk in chunks:
        yield vision_pb2.EncodeResponse(data_chunk=chunk)
