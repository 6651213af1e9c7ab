"""A client sends an upload again where it is unknown."""

import asyncio
import hashlib
from collections.abc import Callable

import pytest

from chassis.errors import NotFound
from tandem.client import AsyncClient, Client
from tandem.client.uploads import Uploads
from tandem.v1 import gateway_pb2
from tests.gateway.conftest import MakeWorld

FORGETFUL = {"image_store_bytes": 250}  # of the files below it holds one


def files(make_image: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    one, other = make_image(1), make_image(2)
    assert max(len(one), len(other)) <= FORGETFUL["image_store_bytes"] < len(one) + len(other)
    return one, other


async def test_an_upload_that_the_gateway_has_lost_is_sent_again(
    make_world: MakeWorld, make_image: Callable[[int], bytes]
) -> None:
    one, other = files(make_image)
    async with make_world(**FORGETFUL) as world, AsyncClient(world.address) as client:
        digest = await client.put_image(one)
        await client.put_image(other)
        answer = await client.ask("What is it?", images=[digest])
        assert answer.images[0].sha256 == hashlib.sha256(one).hexdigest()
        assert (await client.count_tokens("What is it?", images=[digest])).visual_tokens > 0
        async with AsyncClient(world.address) as stranger:
            with pytest.raises(NotFound) as raised:
                await stranger.ask("What is it?", images=[digest])
            assert raised.value.reason == "IMAGE_NOT_FOUND"


async def test_a_blocking_client_sends_it_again_too(make_world: MakeWorld, make_image: Callable[[int], bytes]) -> None:
    one, other = files(make_image)

    def ask(address: str) -> str:
        with Client(address) as client:
            digest = client.put_image(one)
            client.put_image(other)
            return client.ask("What is it?", images=[digest]).images[0].sha256

    async with make_world(**FORGETFUL) as world:
        assert await asyncio.to_thread(ask, world.address) == hashlib.sha256(one).hexdigest()


async def test_one_client_of_two_gateways_that_share_nothing(
    make_world: MakeWorld, make_image: Callable[[int], bytes]
) -> None:
    async with make_world() as one, make_world() as other:
        async with AsyncClient(f"ipv4:{one.address},{other.address}") as client:
            digest = await client.put_image(make_image(1))
            for _ in range(6):
                await client.ask("What is it?", images=[digest])
        assert len(one.language.starts) + len(other.language.starts) == 6


def test_only_a_refusal_that_the_bytes_can_mend_is_repeated() -> None:
    uploads = Uploads(max_bytes=100)
    sha256 = hashlib.sha256(b"image").digest()
    uploads.add(sha256, b"image")
    refused = NotFound("No image.", reason="IMAGE_NOT_FOUND")

    def request(*digests: bytes) -> gateway_pb2.GatewayGenerateRequest:
        parts = [gateway_pb2.Part(image=gateway_pb2.Image(sha256=digest)) for digest in digests]
        return gateway_pb2.GatewayGenerateRequest(messages=[gateway_pb2.Message(parts=parts)])

    replaced = uploads.replaced(request(sha256), refused, 1000)
    assert replaced is not None
    assert replaced.messages[0].parts[0].image.data == b"image"
    assert uploads.replaced(request(sha256), NotFound("No release.", reason="UNKNOWN_RELEASE"), 1000) is None
    assert uploads.replaced(request(sha256, b"?" * 32), refused, 1000) is None
    assert uploads.replaced(request(sha256), refused, 5) is None
    uploads.add(b"!" * 32, b"x" * 100)  # the older one leaves
    assert uploads.replaced(request(sha256), refused, 1000) is None
