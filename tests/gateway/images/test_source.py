"""Where visual tokens come from: memory, Redis, the vision service by digest or by bytes, another image."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from chassis.grpc_errors import from_rpc_error
from checkpoint.identity import visual_key
from gateway.images.redis_cache import KEY_PREFIX
from tandem.v1 import gateway_pb2, vision_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import ENCODER_ID
from tests.gateway.redis_server import RedisServer
from tests.gateway.scripted import World, eventually

BUSY_S = 3.0  # what a busy machine may add
SMALL, LARGE = b"an image", b"a large image" * 10_000
MISS, HERE, SHARED, VISION, IN_FLIGHT, SIMILAR = (
    gateway_pb2.CACHE_LEVEL_MISS,
    gateway_pb2.CACHE_LEVEL_GATEWAY,
    gateway_pb2.CACHE_LEVEL_SHARED,
    gateway_pb2.CACHE_LEVEL_VISION,
    gateway_pb2.CACHE_LEVEL_IN_FLIGHT,
    gateway_pb2.CACHE_LEVEL_SIMILAR,
)


def name_of(image: bytes) -> bytes:
    """Return the name Redis has an image's visual tokens under."""
    key = visual_key(encoder_id=ENCODER_ID, cache_salt=b"", image_sha256=hashlib.sha256(image).digest())
    return KEY_PREFIX + key.hex().encode()


NAME = name_of(SMALL)


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def level(world: World, image: bytes) -> int:
    return (await report(world, image)).cache_level


async def report(world: World, image: bytes) -> gateway_pb2.ImageReport:
    [found] = (await world.ask(image, "What is it?")).finished.images
    return found


def shared(redis: RedisServer, **settings: Any) -> dict[str, Any]:
    """Return settings of a gateway that shares its cache and has the patience a busy machine takes."""
    return {"shared_cache_url": redis.url, "shared_cache_timeout_ms": 1000, "shared_cache_pause_s": 0.3, **settings}


async def test_a_small_image_is_sent_at_once(world: World) -> None:
    """Asking first would cost more than its bytes."""
    assert await level(world, SMALL) == MISS
    assert [request.image for request in world.vision.requests] == [SMALL]


async def test_a_large_image_is_asked_for_by_digest_and_then_sent(world: World) -> None:
    assert await level(world, LARGE) == MISS
    assert [request.image for request in world.vision.requests] == [b"", LARGE]
    assert {request.image_sha256 for request in world.vision.requests} == {hashlib.sha256(LARGE).digest()}


async def test_a_large_image_the_vision_service_knows_is_never_sent(world: World) -> None:
    world.vision.known.add(hashlib.sha256(LARGE).digest())
    world.vision.source = vision_pb2.ENCODE_SOURCE_CACHED
    assert await level(world, LARGE) == VISION
    assert [request.image for request in world.vision.requests] == [b""]
    assert await level(world, LARGE) == HERE


@pytest.mark.parametrize(("limit", "asks_first"), [(len(SMALL), True), (len(SMALL) + 1, False)])
async def test_the_size_from_which_the_digest_goes_first_is_a_setting(
    limit: int, asks_first: bool, make_world: MakeWorld
) -> None:
    async with make_world(digest_first_bytes=limit) as world:
        await world.ask(SMALL, "What is it?")
        assert (world.vision.requests[0].image == b"") == asks_first


async def test_what_another_gateway_had_encoded_at_that_moment_says_so(world: World) -> None:
    world.vision.source = vision_pb2.ENCODE_SOURCE_IN_FLIGHT
    assert await level(world, SMALL) == IN_FLIGHT


async def test_a_similar_images_tokens_keep_that_images_key_and_answer_once(world: World) -> None:
    """The decoder caches by the key it is given, so it must be that of the image that was encoded."""
    twin = hashlib.sha256(b"its twin").digest()
    world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
    world.vision.similar = vision_pb2.SimilarImage(image_sha256=twin, similarity=0.97)
    for _ in range(2):
        image = await report(world, SMALL)
        assert (image.cache_level, image.similar_sha256, image.similarity) == (SIMILAR, twin, 0.97)
        assert image.sha256 == hashlib.sha256(SMALL).digest()
    assert world.vision.num_encodes == 2
    keys = {tokens.visual_key for tokens in world.language.images}
    assert keys == {visual_key(encoder_id=ENCODER_ID, cache_salt=b"", image_sha256=twin)}


async def test_a_similar_image_under_a_key_that_is_not_its_own_is_refused(world: World) -> None:
    world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
    world.vision.similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
    world.vision.change = lambda tokens: setattr(tokens, "visual_key", b"k" * 32)
    with pytest.raises(grpc.RpcError) as raised:
        await world.ask(SMALL, "What is it?")
    assert from_rpc_error(raised.value).reason == "ENCODER_CHANGED"


async def test_with_reuse_off_every_request_has_its_images_encoded(make_world: MakeWorld) -> None:
    """Measurements compare with this, so not even requests at the same time may share."""
    async with make_world(visual_cache=False) as world:
        world.vision.known.add(hashlib.sha256(LARGE).digest())
        answers = await asyncio.gather(*(world.ask(LARGE, "What is it?") for _ in range(5)))
        assert {answer.finished.images[0].cache_level for answer in answers} == {MISS}
        assert [request.image for request in world.vision.requests] == [LARGE] * 5
        assert len({request.cache_salt for request in world.vision.requests}) == 5
        assert len({tokens.visual_key for tokens in world.language.images}) == 5


async def test_one_gateway_finds_in_redis_what_another_had_encoded(make_world: MakeWorld, redis: RedisServer) -> None:
    async with make_world(**shared(redis)) as one, make_world(**shared(redis)) as other:
        assert await level(one, SMALL) == MISS
        await eventually(lambda: redis.client.exists(NAME) == 1)
        assert await level(other, SMALL) == SHARED
        assert await level(other, SMALL) == HERE
        assert other.vision.num_encodes == 0
        assert one.language.images[0] == other.language.images[0]


@pytest.mark.parametrize("spoil", ["changed", "truncated", "foreign"])
async def test_what_redis_holds_wrongly_is_encoded_again_and_put_right(
    spoil: str, make_world: MakeWorld, redis: RedisServer
) -> None:
    async with make_world(**shared(redis)) as world:
        await world.ask(SMALL, "What is it?")
        await world.ask(b"another image", "What is it?")
        await eventually(lambda: redis.client.dbsize() == 2)
        good = redis.value(NAME)
        another = redis.value(name_of(b"another image"))
        bad = {"changed": good[:-1] + b"!", "truncated": good[:-1], "foreign": another}
        redis.client.set(NAME, bad[spoil])
    async with make_world(**shared(redis)) as world:
        assert await level(world, SMALL) == MISS
        await eventually(lambda: redis.value(NAME) == good)


async def test_similar_images_are_not_shared(make_world: MakeWorld, redis: RedisServer) -> None:
    async with make_world(**shared(redis)) as world:
        world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
        world.vision.similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
        assert await level(world, SMALL) == SIMILAR
    assert redis.client.dbsize() == 0  # the gateway has ended, and its writes with it


@pytest.mark.parametrize("trouble", ["killed", "frozen", "full"])
async def test_trouble_with_redis_costs_its_time_at_most_and_never_an_answer(
    trouble: str, make_world: MakeWorld, redis: RedisServer
) -> None:
    async with make_world(**shared(redis, shared_cache_timeout_ms=100)) as world:
        assert await level(world, b"before") == MISS
        {"killed": redis.kill, "frozen": redis.freeze, "full": redis.fill}[trouble]()
        for number in range(10):
            started = time.perf_counter()
            assert await level(world, b"image %d" % number) == MISS
            assert time.perf_counter() - started < 0.1 + BUSY_S
        assert await level(world, b"before") == HERE


async def test_a_redis_that_comes_back_is_used_again(make_world: MakeWorld, redis: RedisServer) -> None:
    async with make_world(**shared(redis)) as world:
        redis.kill()
        for number in range(10):
            await world.ask(b"image %d" % number, "What is it?")
        redis.start()
        await asyncio.sleep(0.35)
        await world.ask(SMALL, "What is it?")
        await eventually(lambda: redis.client.exists(NAME) == 1)
