"""Checks, decodes and resizes pictures in a thread pool, beside the model.

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
from vision_service.images import ImageLimits, check_bytes, read_image, to_pixels

# A picture takes tens of milliseconds: whoever is refused may come again soon.
_RETRY_AFTER_S = 0.25


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as the model takes it."""

    pixels: NDArray[np.float32]  # [3, S, S]
    decode_s: float  # seconds of work, waiting for a thread not counted


class DecodePool:
    """Threads that turn picture files into pixels, and a bound on how many pictures wait for them."""

    def __init__(self, *, num_threads: int, max_pending: int, limits: ImageLimits) -> None:
        """Start the pool.

        Args:
            num_threads: pictures decoded at once; each may take four bytes a pixel several times over.
            max_pending: pictures being decoded or waiting for it; one more is refused at once.
            limits: what a picture may be.
        """
        self.limits = limits
        self._places = threading.BoundedSemaphore(max_pending)
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def decode(self, data: bytes, sha256: bytes, config: VisionConfig) -> Decoded:
        """Check `data` against its digest and the limits and return its pixels.

        A caller that is cancelled before its picture's turn costs nothing more.

        Raises:
            InvalidArgument: the digest is not the picture's (reason DIGEST_MISMATCH), or what `read_image` raises.
            ResourceExhausted: too many pictures are pending (reason QUEUE_FULL).
        """
        check_bytes(data, self.limits)
        if not self._places.acquire(blocking=False):
            raise ResourceExhausted(
                "Too many pictures are waiting to be decoded.", reason="QUEUE_FULL", retry_after_s=_RETRY_AFTER_S
            )
        work = self._executor.submit(_decode, data, sha256, config, self.limits)
        # Given back when the thread is done with the picture, which may be after its caller has left.
        work.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Stop the threads after the pictures they are at."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _decode(data: bytes, sha256: bytes, config: VisionConfig, limits: ImageLimits) -> Decoded:
    started = time.perf_counter()
    if hashlib.sha256(data).digest() != sha256:
        raise InvalidArgument(
            "image_sha256 is not the SHA-256 of the picture.", reason="DIGEST_MISMATCH", field="image_sha256"
        )
    pixels = to_pixels(read_image(data, limits), config)
    return Decoded(pixels, time.perf_counter() - started)
