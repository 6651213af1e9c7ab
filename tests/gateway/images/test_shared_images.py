"""An image that one gateway got is known to the others."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chassis.errors import InvalidArgument, NotFound
from gateway.images.shared_images import SharedImages
from gateway.images.shared_redis import SharedRedis
from gateway.images.store import ImageStore
from tandem.v1 import gateway_pb2
from tandem.v1.gateway_pb2 import Image
from tests.gateway.conftest import MakeWorld
from tests.gateway.redis_server import RedisServer
from tests.gateway.scripted import error_of, read

IMAGE = b"an image"
PREFIX = b"tandem:images:1:"
PATIENT_S = 5.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Gateway:
    """The images of one gateway."""

    def __init__(self, server: RedisServer, *, shared_bytes: int = 1000, max_image_bytes: int = 1000) -> None:
        self._redis = SharedRedis(server.url, timeout_s=PATIENT_S, pause_s=0.3)
        shared = SharedImages(self._redis, max_bytes=shared_bytes, ttl_s=60)
        self._images = ImageStore(max_bytes=2**20, max_image_bytes=max_image_bytes, shared=shared)

    async def put(self, image: bytes, salt: bytes = b"") -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            yield image

        sha256, _ = await self._images.put(chunks(), salt)
        return sha256

    async def get(self, sha256: bytes, salt: bytes = b"") -> bytes:
        return (await self._images.resolve(Image(sha256=sha256), "image", salt)).data

    async def close(self) -> None:
        await self._redis.close()


@pytest.fixture
async def gateways(redis: RedisServer) -> AsyncIterator[tuple[Gateway, Gateway]]:
    redis.client.flushall()
    pair = Gateway(redis), Gateway(redis)
    yield pair
    for one in pair:
        await one.close()


async def test_an_image_of_one_gateway_is_known_to_another(
    gateways: tuple[Gateway, Gateway], redis: RedisServer
) -> None:
    one, other = gateways
    sha256 = await one.put(IMAGE)
    assert await other.get(sha256) == IMAGE
    redis.client.flushall()
    assert await other.get(sha256) == IMAGE  # from its own memory


async def test_an_image_is_known_with_the_salt_of_its_tenant_only(
    gateways: tuple[Gateway, Gateway], redis: RedisServer
) -> None:
    one, other = gateways
    sha256 = await one.put(IMAGE, b"tenant a")
    for salt in (b"", b"tenant b", b"tenant"):
        with pytest.raises(NotFound):
            await other.get(sha256, salt)
    assert await other.get(sha256, b"tenant a") == IMAGE
    assert not [
        name for name in redis.client.scan_iter() if sha256.hex().encode() in name
    ]  # names tell nobody which image it is


@pytest.mark.parametrize("value", [b"another image", b"", IMAGE[:-1]])
async def test_a_changed_image_is_not_used(value: bytes, gateways: tuple[Gateway, Gateway], redis: RedisServer) -> None:
    one, other = gateways
    sha256 = await one.put(IMAGE)
    [name] = images(redis)
    redis.client.set(name, value)
    with pytest.raises(NotFound) as raised:
        await other.get(sha256)
    assert raised.value.reason == "IMAGE_NOT_FOUND"


def images(redis: RedisServer) -> list[bytes]:
    books = (PREFIX + b"index", PREFIX + b"sizes")
    return [name for name in redis.client.scan_iter(PREFIX + b"*") if name not in books]


async def test_images_of_all_gateways_are_bounded_and_the_oldest_leave(
    gateways: tuple[Gateway, Gateway], redis: RedisServer
) -> None:
    numbers = range(20)
    for number in numbers:
        await gateways[number % 2].put(b"%3d" % number * 100)  # 300 bytes each
    reader = Gateway(redis)
    found = [number for number in numbers if await is_known(reader, b"%3d" % number * 100)]
    await reader.close()
    assert found == [17, 18, 19]
    assert sum(redis.client.strlen(name) for name in images(redis)) == 900


async def is_known(gateway: Gateway, image: bytes) -> bool:
    try:
        await gateway.get(hashlib.sha256(image).digest())
    except NotFound:
        return False
    return True


async def test_an_image_that_is_put_again_counts_once(gateways: tuple[Gateway, Gateway], redis: RedisServer) -> None:
    for number in range(20):
        await gateways[number % 2].put(b"x" * 400)
        await gateways[number % 2].put(b"y" * 400)
    assert len(images(redis)) == 2
    assert redis.client.hget(PREFIX + b"sizes", "total") == b"800"


async def test_an_image_expires(gateways: tuple[Gateway, Gateway], redis: RedisServer) -> None:
    await gateways[0].put(IMAGE)
    assert all(0 < redis.client.pttl(name) <= 60_000 for name in redis.client.scan_iter())


async def test_an_image_larger_than_this_gateway_allows_is_refused(redis: RedisServer) -> None:
    redis.client.flushall()
    one, other = Gateway(redis), Gateway(redis, max_image_bytes=100)
    sha256 = await one.put(b"x" * 200)
    with pytest.raises(InvalidArgument) as raised:
        await other.get(sha256)
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    await one.close()
    await other.close()


async def test_without_redis_an_upload_succeeds_and_its_own_gateway_knows_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        one, other = Gateway(server), Gateway(server)
        server.kill()
        sha256 = await one.put(IMAGE)
        assert await one.get(sha256) == IMAGE
        with pytest.raises(NotFound) as raised:
            await other.get(sha256)
        assert raised.value.reason == "IMAGE_NOT_FOUND"
        await one.close()
        await other.close()


async def test_a_question_at_one_gateway_names_an_image_of_another(make_world: MakeWorld, redis: RedisServer) -> None:
    redis.client.flushall()
    shared = {"shared_cache_url": redis.url, "shared_cache_timeout_ms": 1000}
    async with make_world(**shared) as one, make_world(**shared) as other, make_world() as alone:
        put = await one.stub.PutImage(iter([gateway_pb2.PutImageRequest(chunk=IMAGE)]))
        parts = [gateway_pb2.Part(image=Image(sha256=put.sha256)), gateway_pb2.Part(text="What is it?")]
        message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=parts)
        request = gateway_pb2.GatewayGenerateRequest(messages=[message])
        for world in (one, other):
            [report] = (await read(world.stub.Generate(request))).finished.images
            assert report.sha256 == hashlib.sha256(IMAGE).digest()
        assert (await error_of(read(alone.stub.Generate(request)))).reason == "IMAGE_NOT_FOUND"


async def test_gateways_that_share_no_images_know_only_their_own(make_world: MakeWorld, redis: RedisServer) -> None:
    redis.client.flushall()
    async with make_world(shared_cache_url=redis.url, shared_cache_timeout_ms=1000, shared_image_bytes=0) as world:
        await world.stub.PutImage(iter([gateway_pb2.PutImageRequest(chunk=IMAGE)]))
    assert not images(redis)
