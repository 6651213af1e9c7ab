"""Checks, decodes and resizes images in a thread pool, beside the model.

Pillow and hashlib let go of the interpreter lock while they work, so threads are enough.
"""

import asyncio
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chassis.errors import InvalidArgument, ResourceExhausted
from checkpoint.config import VisionConfig
from processing import to_pixels
from vision_service import metrics
from vision_service.image_files import ImageLimits, check_bytes, read_image
from vision_service.similar import Vector, thumbnail

# An image takes tens of milliseconds: whoever is refused may come again soon.
_RETRY_AFTER_S = 0.25
_INLINE_BYTES = 1 << 20  # hashed at once in less than a millisecond, which costs less than asking a thread


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as the model takes it."""

    pixels: NDArray[np.float32]  # [3, S, S]
    decode_s: float  # seconds of work, waiting for a thread not counted
    thumbnail: Vector | None  # what similar images are found by; None where unwanted, or the image is blank


class DecodePool:
    """Threads that turn image files into pixels, and a bound on how many images wait for them."""

    def __init__(
        self, *, num_threads: int, max_pending: int, limits: ImageLimits, with_thumbnails: bool = False
    ) -> None:
        """Start the pool.

        Args:
            num_threads: images decoded at once; each may take four bytes a pixel several times over.
            max_pending: images being decoded or waiting for it; one more is refused at once.
            limits: what an image may be.
            with_thumbnails: make a thumbnail of every image as well.
        """
        self.limits = limits
        self._with_thumbnails = with_thumbnails
        self._places = threading.BoundedSemaphore(max_pending)
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def check(self, data: bytes, sha256: bytes) -> None:
        """Check an image file's size and that it is the one its digest names.

        Raises:
            InvalidArgument: reason DIGEST_MISMATCH, or what `check_bytes` raises.
        """
        check_bytes(data, self.limits)
        actual = _sha256(data) if len(data) <= _INLINE_BYTES else await asyncio.to_thread(_sha256, data)
        if actual != sha256:
            raise InvalidArgument(
                "image_sha256 is not the SHA-256 of the image.", reason="DIGEST_MISMATCH", field="image_sha256"
            )

    async def decode(self, data: bytes, config: VisionConfig) -> Decoded:
        """Check an image file against the limits and return its pixels.

        A caller that is cancelled before its image's turn costs nothing more.

        Raises:
            InvalidArgument: what `read_image` raises.
            ResourceExhausted: too many images are pending (reason QUEUE_FULL).
        """
        if not self._places.acquire(blocking=False):
            raise ResourceExhausted(
                "Too many images are waiting to be decoded.", reason="QUEUE_FULL", retry_after_s=_RETRY_AFTER_S
            )
        metrics.DECODING.inc()
        work = self._executor.submit(self._decode, data, config)
        # Given back when the thread is done with the image, which may be after its caller has left.
        work.add_done_callback(lambda _: self._give_back())
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Stop the threads after the images they are at."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _give_back(self) -> None:
        metrics.DECODING.dec()
        self._places.release()

    def _decode(self, data: bytes, config: VisionConfig) -> Decoded:
        started = time.perf_counter()
        image = read_image(data, self.limits)
        vector = thumbnail(image) if self._with_thumbnails else None
        pixels = to_pixels(image, config)
        return Decoded(pixels, time.perf_counter() - started, vector)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
