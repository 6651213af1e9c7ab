"""Visual tokens come from memory, Redis or the vision service."""

import asyncio
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from checkpoint.identity import visual_key
from gateway.admission import Tenant
from tandem.v1 import gateway_pb2, vision_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import ENCODER_ID
from tests.gateway.redis_server import RedisServer
from tests.gateway.scripted import World, error_of, eventually

SALT = Tenant(name="anonymous").salt  # of callers without keys
BUSY_S = 3.0  # delay that a busy machine may add
SMALL, LARGE = b"an image", b"a large image" * 10_000
MISS, MEMORY, REDIS, VISION, IN_FLIGHT, SIMILAR = (
    gateway_pb2.CACHE_LEVEL_MISS,
    gateway_pb2.CACHE_LEVEL_GATEWAY,
    gateway_pb2.CACHE_LEVEL_SHARED,
    gateway_pb2.CACHE_LEVEL_VISION,
    gateway_pb2.CACHE_LEVEL_IN_FLIGHT,
    gateway_pb2.CACHE_LEVEL_SIMILAR,
)


def redis_key(image: bytes) -> bytes:
    """Return the Redis key of an image's visual tokens."""
    key = visual_key(encoder_id=ENCODER_ID, cache_salt=SALT, image_sha256=hashlib.sha256(image).digest())
    return b"tandem:visual-tokens:1:" + key.hex().encode()


SMALL_KEY = redis_key(SMALL)


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
    """Return gateway settings with Redis and a patient timeout."""
    return {"shared_cache_url": redis.url, "shared_cache_timeout_ms": 1000, "shared_cache_pause_s": 0.3, **settings}


async def test_a_small_image_is_sent_at_once(world: World) -> None:
    """A request by digest would cost more than the bytes."""
    assert await level(world, SMALL) == MISS
    assert [request.image for request in world.vision.requests] == [SMALL]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 1000])
async def test_chunks_are_joined(chunk_bytes: int, world: World) -> None:
    world.vision.chunk_bytes = chunk_bytes
    await level(world, SMALL)
    [tokens] = world.language.images
    shape = tokens.embeddings.shape
    assert tokens.embeddings.data == b"\x80\x3f" * shape[0] * shape[1]


async def test_endless_chunks_are_an_error_of_the_stage(world: World) -> None:
    """A call ends at the first byte too many."""
    world.vision.extra_chunks = 10**9
    assert (await error_of(world.ask(SMALL, "What is it?"))).reason == "BAD_TENSOR"


async def test_missing_chunks_are_an_error_of_the_stage(world: World) -> None:
    world.vision.change = lambda tokens: setattr(tokens.embeddings, "data", tokens.embeddings.data[:-2])
    assert (await error_of(world.ask(SMALL, "What is it?"))).reason == "BAD_TENSOR"


async def test_a_large_image_is_asked_for_by_digest_and_then_sent(world: World) -> None:
    assert await level(world, LARGE) == MISS
    assert [request.image for request in world.vision.requests] == [b"", LARGE]
    assert {request.image_sha256 for request in world.vision.requests} == {hashlib.sha256(LARGE).digest()}


async def test_a_large_image_in_the_vision_services_cache_is_not_sent(world: World) -> None:
    world.vision.known.add(hashlib.sha256(LARGE).digest())
    world.vision.source = vision_pb2.ENCODE_SOURCE_CACHED
    assert await level(world, LARGE) == VISION
    assert [request.image for request in world.vision.requests] == [b""]
    assert await level(world, LARGE) == MEMORY


@pytest.mark.parametrize(("limit", "asks_first"), [(len(SMALL), True), (len(SMALL) + 1, False)])
async def test_the_minimum_size_for_requests_by_digest_is_a_setting(
    limit: int, asks_first: bool, make_world: MakeWorld
) -> None:
    async with make_world(digest_first_bytes=limit) as world:
        await world.ask(SMALL, "What is it?")
        assert (world.vision.requests[0].image == b"") == asks_first


async def test_an_encoding_shared_with_another_gateway_is_reported_as_in_flight(world: World) -> None:
    world.vision.source = vision_pb2.ENCODE_SOURCE_IN_FLIGHT
    assert await level(world, SMALL) == IN_FLIGHT


async def test_tokens_of_a_similar_image_keep_its_key_and_are_not_cached(world: World) -> None:
    """The decoder caches by the key of the encoded image."""
    twin = hashlib.sha256(b"its twin").digest()
    world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
    world.vision.similar = vision_pb2.SimilarImage(image_sha256=twin, similarity=0.97)
    for _ in range(2):
        image = await report(world, SMALL)
        assert (image.cache_level, image.similar_sha256, image.similarity) == (SIMILAR, twin, 0.97)
        assert image.sha256 == hashlib.sha256(SMALL).digest()
    assert world.vision.num_encodes == 2
    keys = {tokens.visual_key for tokens in world.language.images}
    assert keys == {visual_key(encoder_id=ENCODER_ID, cache_salt=SALT, image_sha256=twin)}


async def test_a_similar_image_with_a_wrong_key_is_rejected(world: World) -> None:
    world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
    world.vision.similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
    world.vision.change = lambda tokens: setattr(tokens, "visual_key", b"k" * 32)
    assert (await error_of(world.ask(SMALL, "What is it?"))).reason == "ENCODER_CHANGED"


async def test_without_reuse_every_request_encodes_its_images(make_world: MakeWorld) -> None:
    """Benchmarks compare with this, so concurrent requests must not share."""
    async with make_world(visual_cache=False) as world:
        world.vision.known.add(hashlib.sha256(LARGE).digest())
        answers = await asyncio.gather(*(world.ask(LARGE, "What is it?") for _ in range(5)))
        assert {answer.finished.images[0].cache_level for answer in answers} == {MISS}
        assert [request.image for request in world.vision.requests] == [LARGE] * 5
        assert len({request.cache_salt for request in world.vision.requests}) == 5
        assert len({tokens.visual_key for tokens in world.language.images}) == 5


async def test_gateways_share_visual_tokens_through_redis(make_world: MakeWorld, redis: RedisServer) -> None:
    async with make_world(**shared(redis)) as one, make_world(**shared(redis)) as other:
        assert await level(one, SMALL) == MISS
        await eventually(lambda: redis.client.exists(SMALL_KEY) == 1)
        assert await level(other, SMALL) == REDIS
        assert await level(other, SMALL) == MEMORY
        assert other.vision.num_encodes == 0
        assert one.language.images[0] == other.language.images[0]


@pytest.mark.parametrize("damage", ["changed", "truncated", "foreign"])
async def test_a_bad_redis_entry_is_encoded_again_and_replaced(
    damage: str, make_world: MakeWorld, redis: RedisServer
) -> None:
    async with make_world(**shared(redis)) as world:
        await world.ask(SMALL, "What is it?")
        await world.ask(b"another image", "What is it?")
        await eventually(lambda: redis.client.dbsize() == 2)
        good = redis.value(SMALL_KEY)
        another = redis.value(redis_key(b"another image"))
        bad = {"changed": good[:-1] + b"!", "truncated": good[:-1], "foreign": another}
        redis.client.set(SMALL_KEY, bad[damage])
    async with make_world(**shared(redis)) as world:
        assert await level(world, SMALL) == MISS
        await eventually(lambda: redis.value(SMALL_KEY) == good)


async def test_similar_images_are_not_written_to_redis(make_world: MakeWorld, redis: RedisServer) -> None:
    async with make_world(**shared(redis)) as world:
        world.vision.source = vision_pb2.ENCODE_SOURCE_SIMILAR
        world.vision.similar = vision_pb2.SimilarImage(image_sha256=bytes(32), similarity=0.97)
        assert await level(world, SMALL) == SIMILAR
    assert redis.client.dbsize() == 0  # the gateway and its writes have ended


@pytest.mark.parametrize("failure", ["killed", "frozen", "full"])
async def test_a_failing_redis_costs_at_most_its_timeout_and_no_answer(
    failure: str, make_world: MakeWorld, redis: RedisServer
) -> None:
    async with make_world(**shared(redis, shared_cache_timeout_ms=100)) as world:
        assert await level(world, b"before") == MISS
        {"killed": redis.kill, "frozen": redis.freeze, "full": redis.fill}[failure]()
        for number in range(10):
            started = time.perf_counter()
            assert await level(world, b"image %d" % number) == MISS
            assert time.perf_counter() - started < 0.1 + BUSY_S
        assert await level(world, b"before") == MEMORY


async def test_a_restarted_redis_is_used_again(make_world: MakeWorld, redis: RedisServer) -> None:
    async with make_world(**shared(redis)) as world:
        redis.kill()
        for number in range(10):
            await world.ask(b"image %d" % number, "What is it?")
        redis.start()
        await asyncio.sleep(0.35)
        await world.ask(SMALL, "What is it?")
        await eventually(lambda: redis.client.exists(SMALL_KEY) == 1)
