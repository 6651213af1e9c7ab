"""Errors of stage calls, as clients see them."""

import pytest

from chassis.channels import open_channel
from chassis.errors import InvalidArgument
from chassis.server import Server
from chassis.settings import ServiceSettings
from gateway.stages.errors import translate_errors
from tandem.v1 import vision_pb2, vision_pb2_grpc


async def test_a_message_too_large_for_the_stage_is_the_requests_fault() -> None:
    """The gateway may accept larger images than the vision service."""
    server = Server(ServiceSettings(max_message_bytes=1000))
    vision = vision_pb2_grpc.VisionServiceServicer()  # type: ignore[abstract]
    vision_pb2_grpc.add_VisionServiceServicer_to_server(vision, server.grpc)
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            call = vision_pb2_grpc.VisionServiceStub(channel).Encode(vision_pb2.EncodeRequest(image=bytes(5000)))
            with pytest.raises(InvalidArgument) as caught, translate_errors("vision"):
                await call.read()
    finally:
        await server.stop(0)
    assert caught.value.reason == "TOO_LARGE_FOR_STAGE"
    assert caught.value.message == "The message is larger than the vision service accepts, send less at once."
