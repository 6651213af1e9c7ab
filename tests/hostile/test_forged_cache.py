"""False visual tokens in Redis under an image's key."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chassis.errors import FailedPrecondition
from checkpoint.identity import visual_key
from gateway.admission import Tenant
from gateway.images.entry import Entry
from tandem.v1 import gateway_pb2, tensor_pb2
from tests.gateway.conftest import MakeWorld, make_world, tokenizer
from tests.gateway.halves import ENCODER_ID
from tests.gateway.redis_server import RedisServer
from tests.gateway.scripted import World, eventually

__all__ = ["make_world", "tokenizer"]

pytestmark = pytest.mark.timeout(300)

IMAGE = b"an image"
KEY = visual_key(
    encoder_id=ENCODER_ID, cache_salt=Tenant(name="anonymous").salt, image_sha256=hashlib.sha256(IMAGE).digest()
)
FORGED = b"\x00\x40"  # 2 in bfloat16. The scripted encoder answers 1
MISS, SHARED = gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_SHARED


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("s" * 64 + "\n")
    return path


def shared(redis: RedisServer, **settings: Any) -> dict[str, Any]:
    return {"shared_cache_url": redis.url, "shared_cache_timeout_ms": 1000, **settings}


async def level(world: World) -> int:
    [image] = (await world.ask(IMAGE, "What is it?")).finished.images
    return image.cache_level


def forge(redis: RedisServer, tokens: tensor_pb2.VisualTokens) -> None:
    """Store changed tokens in every form that needs no secret."""
    forged = tensor_pb2.VisualTokens()
    forged.CopyFrom(tokens)
    forged.embeddings.data = FORGED * (len(tokens.embeddings.data) // len(FORGED))
    entry = Entry.of(forged.SerializeToString())
    unsigned, signed = entry.pack(), entry.pack(b"a guess of the secret" * 4)
    for version, value in ((1, unsigned), (2, signed)):
        redis.client.set(f"tandem:visual-tokens:{version}:{KEY.hex()}", value)


async def test_forged_visual_tokens_are_not_believed(make_world: MakeWorld, redis: RedisServer, secret: Path) -> None:
    async with make_world(**shared(redis, shared_cache_secret_file=secret)) as world:
        assert await level(world) == MISS
        [tokens] = world.language.images
    forge(redis, tokens)
    async with make_world(**shared(redis, shared_cache_secret_file=secret)) as world:
        assert await level(world) == MISS
        assert [sent.embeddings.data for sent in world.language.images] == [tokens.embeddings.data]


async def test_gateways_with_one_secret_share_visual_tokens(
    make_world: MakeWorld, redis: RedisServer, secret: Path
) -> None:
    async with make_world(**shared(redis, shared_cache_secret_file=secret)) as world:
        assert await level(world) == MISS
        await eventually(lambda: redis.client.exists(f"tandem:visual-tokens:2:{KEY.hex()}") == 1)
    async with make_world(**shared(redis, shared_cache_secret_file=secret)) as world:
        assert await level(world) == SHARED
    async with make_world(**shared(redis)) as world:  # one that does not have it yet neither uses nor drops them
        assert await level(world) == MISS
    assert redis.client.exists(f"tandem:visual-tokens:2:{KEY.hex()}") == 1


@pytest.mark.parametrize("content", [None, "", "short"])
async def test_a_secret_that_protects_nothing_stops_the_start(
    content: str | None, make_world: MakeWorld, redis: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "short"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FailedPrecondition) as raised:
        async with make_world(**shared(redis, shared_cache_secret_file=path)):
            pass
    assert raised.value.reason == "BAD_SECRET"
