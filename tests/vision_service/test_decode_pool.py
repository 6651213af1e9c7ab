"""The decode pool is bounded and drops cancelled calls."""

import asyncio
import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from chassis.errors import InvalidArgument, ResourceExhausted
from checkpoint.families import VisionConfig
from processing.square_images import SquareImages
from vision_service import decode_pool
from vision_service.decode_pool import DecodePool
from vision_service.image_reader import ImageLimits, decoded_image, read_image
from vision_service.memory_budget import MemoryBudget

IMAGES = SquareImages(VisionConfig(), num_visual_tokens=32)


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "PNG")
    return file.getvalue()


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(num_threads=1, max_pending=2, limits=ImageLimits())
    yield pool
    pool.close()


async def test_pixels_equal_those_of_the_plain_functions(pool: DecodePool) -> None:
    data = png()
    decoded = await pool.decode(data, IMAGES)
    np.testing.assert_array_equal(decoded.pixels, IMAGES.to_pixels(read_image(data, ImageLimits())))
    assert decoded.decode_s > 0


async def test_a_digest_of_another_image_is_rejected(pool: DecodePool) -> None:
    """Otherwise a wrong image could be cached under this key."""
    large = bytes(2 * 2**20)  # hashed in a thread
    for data in (png(), large):
        await pool.check(data, digest(data))
        with pytest.raises(InvalidArgument) as caught:
            await pool.check(data, digest(png("blue")))
        assert (caught.value.reason, caught.value.field) == ("DIGEST_MISMATCH", "image_sha256")


async def test_the_pool_is_bounded_and_cancelled_calls_free_their_slots(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, seen = threading.Event(), []

    @contextmanager
    def slow_read(data: bytes, limits: ImageLimits, memory: MemoryBudget) -> Iterator[Image.Image]:
        seen.append(data)
        assert gate.wait(10)
        with decoded_image(data, limits, memory) as image:
            yield image

    monkeypatch.setattr(decode_pool, "decoded_image", slow_read)
    images = {colour: png(colour) for colour in ("red", "green", "blue", "white")}
    tasks = {colour: asyncio.create_task(pool.decode(images[colour], IMAGES)) for colour in ("red", "green")}
    await asyncio.sleep(0.01)
    with pytest.raises(ResourceExhausted) as caught:
        await pool.decode(images["blue"], IMAGES)
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_s is not None
    tasks["green"].cancel()
    await asyncio.sleep(0)
    tasks["white"] = asyncio.create_task(pool.decode(images["white"], IMAGES))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(tasks["red"], tasks["white"])
    assert seen == [images["red"], images["white"]]


async def test_bad_images_free_their_slots(pool: DecodePool) -> None:
    for _ in range(5):
        with pytest.raises(InvalidArgument):
            await pool.decode(b"no image", IMAGES)
    await asyncio.gather(*(pool.decode(png(), IMAGES) for _ in range(2)))
