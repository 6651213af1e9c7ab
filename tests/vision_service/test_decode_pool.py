"""The decode pool is bounded and drops cancelled calls."""

import asyncio
import hashlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chassis.errors import InvalidArgument, ResourceExhausted
from checkpoint.families import VisionConfig
from processing.square_images import SquareImages
from vision_service.decode_pool import DecodePool
from vision_service.decode_process import DecodeProcess
from vision_service.image_reader import ImageLimits, read_image

IMAGES = SquareImages(VisionConfig(), num_visual_tokens=32)


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "PNG")
    return file.getvalue()


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(num_processes=1, max_pending=2, limits=ImageLimits())
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


@cache
def slow_image() -> bytes:
    """Return an image that takes about a second to decode."""
    file = io.BytesIO()
    Image.effect_noise((5000, 5000), 60).convert("RGB").save(file, "JPEG", quality=85, progressive=True)
    return file.getvalue()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.005)


async def test_the_pool_is_bounded_and_cancelled_calls_free_their_slots() -> None:
    # Without memory for a second image, the first one is waiting or being decoded for as long as the test wants.
    pool = DecodePool(num_processes=1, max_pending=2, limits=ImageLimits())
    with pool._memory.reserve(pool._memory.num_bytes):
        tasks = [asyncio.create_task(pool.decode(png(colour), IMAGES)) for colour in ("red", "green")]
        await asyncio.sleep(0.01)
        with pytest.raises(ResourceExhausted) as caught:
            await pool.decode(png("blue"), IMAGES)
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_s is not None
        tasks[1].cancel()
        await asyncio.sleep(0)
        tasks[1] = asyncio.create_task(pool.decode(png("white"), IMAGES))
        await asyncio.sleep(0)
    decoded = await asyncio.gather(*tasks)
    for image, colour in zip(decoded, ("red", "white"), strict=True):
        np.testing.assert_array_equal(image.pixels, IMAGES.to_pixels(read_image(png(colour), ImageLimits())))
    pool.close()


async def test_an_image_whose_caller_leaves_soon_frees_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_service.decode_pool._GRACE_S", 0.02)
    pool = DecodePool(num_processes=1, max_pending=1, limits=ImageLimits())
    await pool.decode(png(), IMAGES)
    (process,) = pool._idle
    leaving = asyncio.create_task(pool.decode(slow_image(), IMAGES))
    await until(lambda: not pool._idle)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: process.has_ended)
    await until(lambda: pool._slots.acquire(blocking=False))
    pool._slots.release()
    assert (await pool.decode(png(), IMAGES)).decode_s > 0  # in a new process
    pool.close()


async def test_an_image_that_takes_too_long_is_rejected_and_the_next_is_decoded() -> None:
    pool = DecodePool(num_processes=1, max_pending=1, limits=ImageLimits(), processor_s=0.4)
    with pytest.raises(InvalidArgument, match="takes too long to decode") as caught:
        await pool.decode(slow_image(), IMAGES)
    assert caught.value.reason == "IMAGE_UNSUPPORTED"
    assert (await pool.decode(png(), IMAGES)).decode_s > 0
    pool.close()


async def test_a_decoder_that_crashes_takes_one_image_with_it(pool: DecodePool) -> None:
    await pool.decode(png(), IMAGES)
    os.kill(pool._idle[0].process_id, signal.SIGSEGV)
    with pytest.raises(InvalidArgument, match="The decoder failed") as caught:
        await pool.decode(png(), IMAGES)
    assert caught.value.reason == "IMAGE_UNSUPPORTED"
    assert (await pool.decode(png(), IMAGES)).decode_s > 0


async def test_an_image_waits_for_memory_without_losing_time(pool: DecodePool) -> None:
    await pool.decode(png(), IMAGES)
    with pool._memory.reserve(pool._memory.num_bytes):
        task = asyncio.create_task(pool.decode(png(), IMAGES))
        await asyncio.sleep(0.5)
        assert not task.done()
    assert (await task).decode_s < 0.5


async def test_a_decoder_that_lies_is_ended(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's image may have taken it over."""
    shape = {"grid": None, "decode_s": 0.1, "has_thumbnail": False}
    for reply in (
        {"shape": [3, 10**9, 10**9], **shape},
        {"shape": [1, 2, 2], **shape},
        {"shape": [3, 8, 8], **shape, "grid": [10**6, 10**6]},
        {"shape": [3, 224, 224]},
        {"error": "SystemExit", "message": "", "reason": "", "field": None, "retry_after_s": None},
        {},
    ):
        with monkeypatch.context() as patch:
            patch.setattr(DecodeProcess, "_receive", lambda _, reply=reply: reply)
            with pytest.raises(InvalidArgument, match="cannot be decoded"):
                await pool.decode(png(), IMAGES)
    assert (await pool.decode(png(), IMAGES)).decode_s > 0


def test_a_decoder_cannot_see_the_environment_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_REDIS_PASSWORD", "secret")
    process = DecodeProcess()
    assert b"secret" not in Path(f"/proc/{process.process_id}/environ").read_bytes()
    process.end()


def test_a_closed_pool_leaves_no_process_behind(pool: DecodePool) -> None:
    pool.start()
    assert len(pool._idle) == 1
    process_id = pool._idle[0].process_id
    pool.close()
    assert not Path(f"/proc/{process_id}").exists()


async def test_bad_images_free_their_slots(pool: DecodePool) -> None:
    for _ in range(5):
        with pytest.raises(InvalidArgument):
            await pool.decode(b"no image", IMAGES)
    await asyncio.gather(*(pool.decode(png(), IMAGES) for _ in range(2)))
