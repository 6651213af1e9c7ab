"""Check, decode and resize images in threads.

Pillow and hashlib release the interpreter lock while they work, so threads suffice.
"""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client import Gauge

from chassis.errors import InvalidArgument, ResourceExhausted
from chassis.verified_cache import sha256_of
from processing import ImageProcessor, Pixels
from vision_service.image_reader import ImageLimits, check_bytes, decoded_image
from vision_service.memory_budget import MemoryBudget
from vision_service.similar_images import Vector, thumbnail_vector

DECODING = Gauge("tandem_vision_decoding", "Images that are being decoded or wait for it.")

DECODE_MEMORY_BYTES = 2**30
_RETRY_AFTER_S = 0.25  # short, because an image takes tens of milliseconds
_MAX_INLINE_HASH_BYTES = 1 << 20  # hashed in less than a millisecond, which costs less than a thread switch


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as the input of the model."""

    pixels: Pixels  # [3, height, width]
    grid: tuple[int, int] | None  # rows and columns of the visual tokens, if they have a grid
    decode_s: float  # without the wait for a thread
    thumbnail: Vector | None  # to find similar images. None if switched off, or for a blank image


class DecodePool:
    """Threads that decode image files, with a bounded queue."""

    def __init__(
        self,
        *,
        num_threads: int,
        max_pending: int,
        limits: ImageLimits,
        memory_bytes: int = DECODE_MEMORY_BYTES,
        with_thumbnails: bool = False,
    ) -> None:
        """Start the pool.

        Args:
            num_threads: images decoded at once.
            max_pending: images that are being decoded or wait for it. A further one is rejected at once.
            limits: which images are accepted.
            memory_bytes: that all threads together may use. An image waits for its share, or is rejected if it needs
                more than all of it.
            with_thumbnails: also make a thumbnail of every image.
        """
        self.limits = limits
        self._memory = MemoryBudget(memory_bytes)
        self._with_thumbnails = with_thumbnails
        self._slots = threading.BoundedSemaphore(max_pending)
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def check(self, data: bytes, sha256: bytes) -> None:
        """Check the size and the digest of an image file.

        Raises:
            InvalidArgument: reason 'DIGEST_MISMATCH', 'IMAGE_EMPTY' or 'IMAGE_TOO_LARGE'.
        """
        check_bytes(data, self.limits)
        actual = sha256_of(data) if len(data) <= _MAX_INLINE_HASH_BYTES else await asyncio.to_thread(sha256_of, data)
        if actual != sha256:
            raise InvalidArgument(
                "image_sha256 is not the SHA-256 of the image.", reason="DIGEST_MISMATCH", field="image_sha256"
            )

    async def decode(self, data: bytes, processor: ImageProcessor) -> DecodedImage:
        """Check an image file and return its pixels.

        If the caller is cancelled while the image waits, the image is not decoded.

        Raises:
            InvalidArgument: the image is rejected, as in `decoded_image`.
            ResourceExhausted: reason 'QUEUE_FULL' or 'NO_MEMORY'.
        """
        if not self._slots.acquire(blocking=False):
            raise ResourceExhausted(
                "The queue for decoding is full, retry later.", reason="QUEUE_FULL", retry_after_s=_RETRY_AFTER_S
            )
        DECODING.inc()
        work = self._executor.submit(self._decode, data, processor)
        # The thread may go on after the caller was cancelled, so the slot is freed when the thread is done.
        work.add_done_callback(lambda _: self._free_slot())
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Stop the threads after their current images."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _free_slot(self) -> None:
        DECODING.dec()
        self._slots.release()

    def _decode(self, data: bytes, processor: ImageProcessor) -> DecodedImage:
        started = time.perf_counter()
        with decoded_image(data, self.limits, self._memory) as image:
            vector = thumbnail_vector(image) if self._with_thumbnails else None
            pixels, grid = processor.to_pixels(image), processor.grid(*image.size)
        return DecodedImage(pixels, grid, time.perf_counter() - started, vector)
