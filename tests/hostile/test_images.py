"""An image of a stranger costs one decoder, not the service."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from chassis.errors import InvalidArgument, TandemError
from checkpoint.families import VisionConfig
from processing.square_images import SquareImages
from tests.vision_service.image_samples import png_of_one_colour, saved
from vision_service.decode_pool import DecodePool
from vision_service.image_reader import ImageLimits

IMAGES = SquareImages(VisionConfig(), num_visual_tokens=32)
HONEST = saved(Image.new("RGB", (320, 240), "red"), "PNG")


@pytest.fixture
async def pool() -> AsyncIterator[DecodePool]:
    pool = DecodePool(num_processes=2, max_pending=16, limits=ImageLimits(), processor_s=5)
    pool.start()
    yield pool
    pool.close()


def exif_segments(num_bytes: int) -> bytes:
    """Return a JPEG with many EXIF segments."""
    jpeg = saved(Image.new("RGB", (64, 48)), "JPEG")
    segment = b"\xff\xe1\xff\xffExif\0\0" + bytes(0xFFFF - 8)
    return jpeg[:2] + segment * (num_bytes // len(segment)) + jpeg[2:]


async def test_many_metadata_segments_take_no_longer_than_their_bytes(pool: DecodePool) -> None:
    """The pool allows five seconds of processor time."""
    assert (await pool.decode(exif_segments(13 * 2**20), IMAGES)).grid is None


async def test_a_bomb_of_pixels_is_refused_while_others_are_answered(pool: DecodePool) -> None:
    bomb = png_of_one_colour(30_000, 30_000)
    replies = await asyncio.gather(*(pool.decode(data, IMAGES) for data in (bomb, HONEST) * 5), return_exceptions=True)
    assert [isinstance(one, InvalidArgument) for one in replies] == [True, False] * 5


async def test_callers_that_leave_at_once_do_not_keep_others_out(pool: DecodePool) -> None:
    slow = saved(Image.effect_noise((4000, 4000), 60).convert("RGB"), "JPEG", quality=85, progressive=True)
    for _ in range(3):
        leaving = [asyncio.create_task(pool.decode(slow, IMAGES)) for _ in range(16)]
        await asyncio.sleep(0.05)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
    async with asyncio.timeout(60):
        while True:
            try:
                await pool.decode(HONEST, IMAGES)
                break
            except TandemError:  # the queue is full until the decoders are ended
                await asyncio.sleep(0.05)


async def test_decoders_that_crash_again_and_again_leave_the_pool_whole(pool: DecodePool) -> None:
    for _ in range(6):
        await pool.decode(HONEST, IMAGES)
        os.kill(pool._idle[-1].process_id, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(InvalidArgument):
            await pool.decode(HONEST, IMAGES)
        assert time.monotonic() - started < 30
    assert (await pool.decode(HONEST, IMAGES)).decode_s > 0
