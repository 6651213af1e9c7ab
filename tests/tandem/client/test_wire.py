"""Answers of the gateway as the clients' types."""

import pytest

from tandem.client import wire
from tandem.errors import Internal
from tandem.v1 import gateway_pb2


def test_a_stream_without_its_last_message_is_an_error() -> None:
    builder = wire.AnswerBuilder("r1")
    builder.add(gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text="half an ans")))
    with pytest.raises(Internal) as caught:
        builder.check_complete()
    assert caught.value.request_id == "r1"


@pytest.mark.parametrize("name", gateway_pb2.CacheLevel.keys())
def test_the_image_report_reaches_the_user(name: str) -> None:
    level = name.removeprefix("CACHE_LEVEL_").lower()
    sent = gateway_pb2.ImageReport(
        sha256=bytes(32),
        cache_level=gateway_pb2.CacheLevel.Value(name),
        num_visual_tokens=32,
        ready_ms=1.5,
        similar_sha256=b"s" * 32,
        similarity=0.5,
    )
    finished = gateway_pb2.GatewayGenerateFinished(images=[sent])
    builder = wire.AnswerBuilder("r1")
    builder.add(gateway_pb2.GatewayGenerateResponse(finished=finished))
    [image] = builder.final.images
    assert (image.sha256, image.cache_level, image.num_visual_tokens) == ("00" * 32, level, 32)
    assert (image.ready_ms, image.similar_sha256, image.similarity) == (1.5, "73" * 32, 0.5)
    assert image.cached == (level != "miss")
