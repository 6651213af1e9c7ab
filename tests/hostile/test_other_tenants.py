"""One tenant tries to learn what another one sent."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.api_keys import authorization, new_key
from chassis.server import Server
from gateway.service import open_service
from gateway.settings import GatewaySettings
from tandem.stack.stack import Stack
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, vision_pb2
from tests.gateway.api_keys import ask_with_key, tenant_entry
from tests.gateway.conftest import MakeWorld, make_image, make_world, tokenizer, write_keys
from tests.gateway.scripted import ask, error_of, read

__all__ = ["make_image", "make_world", "tokenizer", "write_keys"]

pytestmark = pytest.mark.timeout(300)

TAG = "tiny-v1.0.0"
VICTIM, CURIOUS, PARTNER = new_key(), new_key(), new_key()
SECRET = "The merger with Acme is announced on the third of May, keep it to yourself until then. " * 3


@asynccontextmanager
async def gateway(stack: Stack, store: Path, keys: Path) -> AsyncIterator[Any]:
    """Yield the stub of a gateway with real stages."""
    stages: dict[str, Any] = {name: (stack.address_of(name),) for name in ("vision", "language")}
    settings = GatewaySettings(listen="127.0.0.1:0", models=store, release=TAG, keys=keys, **stages)
    server = Server(settings)
    async with open_service(settings, server):
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield gateway_pb2_grpc.GatewayStub(channel)
        await server.stop(0)


async def usage(stub: Any, key: str, *parts: str | bytes) -> gateway_pb2.GatewayGenerateFinished:
    request = ask(*parts)
    request.sampling.max_tokens = 1
    return (await read(stub.Generate(request, metadata=[authorization(key)]))).finished


async def test_counts_of_cached_tokens_tell_nothing_of_another_tenants_text_or_image(
    stack: Stack, store: Path, write_keys: Callable[..., Path], make_image: Callable[[int], bytes]
) -> None:
    keys = write_keys(
        tenant_entry("victim", VICTIM, cache_group="shop"),
        tenant_entry("partner", PARTNER, cache_group="shop"),
        tenant_entry("curious", CURIOUS),
        tenant_entry("shop", new_key()),
    )
    async with gateway(stack, store, keys) as stub:
        sent = (make_image(7), SECRET)
        assert (await usage(stub, VICTIM, *sent)).usage.cached_prompt_tokens == 0
        guess = await usage(stub, CURIOUS, *sent)
        assert guess.usage.cached_prompt_tokens == 0
        assert guess.images[0].cache_level == gateway_pb2.CACHE_LEVEL_MISS
        # The caches are on, for the tenant itself and for its group.
        for key in (CURIOUS, VICTIM, PARTNER):
            known = await usage(stub, key, *sent)
            assert known.usage.cached_prompt_tokens > 0
            assert known.images[0].cache_level == gateway_pb2.CACHE_LEVEL_GATEWAY


async def test_an_upload_is_used_by_its_digest_only_under_the_same_salt(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    keys = write_keys(tenant_entry("victim", VICTIM), tenant_entry("curious", CURIOUS))
    async with make_world(keys=keys) as world:
        chunks = iter([gateway_pb2.PutImageRequest(chunk=b"an image")])
        put = await world.stub.PutImage(chunks, metadata=[authorization(VICTIM)])
        request = ask("What is it?")
        request.messages[0].parts.add(image=gateway_pb2.Image(sha256=put.sha256))
        error = await error_of(read(world.stub.Generate(request, metadata=[authorization(CURIOUS)])))
        assert error.reason == "IMAGE_NOT_FOUND"
        assert (await read(world.stub.Generate(request, metadata=[authorization(VICTIM)]))).finished.images


@pytest.mark.parametrize(("group", "expected"), [("", b"d" * 32), ("shop", b"")])
async def test_the_digest_of_a_similar_image_never_reaches_another_tenant(
    group: str, expected: bytes, make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """In a group, it would open another tenant's upload."""
    async with make_world(keys=write_keys(tenant_entry("victim", VICTIM, cache_group=group))) as world:
        world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
        world.vision.similar = vision_pb2.SimilarImage(image_sha256=b"d" * 32, similarity=0.97)
        [image] = (await ask_with_key(world, VICTIM, b"an image", "What is it?")).finished.images
        assert (image.similar_sha256, image.similarity) == (expected, 0.97)
