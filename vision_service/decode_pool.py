"""Check, decode and resize images in processes of their own.

Each thread of the pool waits for one process. An image that takes too long, or whose caller has left, is dropped by
ending its process. A decoder that crashes takes one image with it, not the service.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client import Gauge

from chassis.errors import InvalidArgument, ResourceExhausted
from chassis.verified_cache import sha256_of
from processing import ImageProcessor, Pixels
from vision_service.decode_process import DecodeProcess, end_all
from vision_service.decode_worker import Job
from vision_service.image_reader import ImageLimits, check_bytes
from vision_service.memory_budget import MemoryBudget
from vision_service.similar_images import Vector

DECODING = Gauge("tandem_vision_decoding", "Images that are being decoded or wait for it.")

DECODE_MEMORY_BYTES = 2**30
DECODE_S = 15.0
_GRACE_S = 0.5  # longer than nearly every image takes, as a new process takes as much
_RETRY_AFTER_S = 0.25  # short, because an image takes tens of milliseconds
_MAX_INLINE_HASH_BYTES = 1 << 20  # hashed in less than a millisecond, which costs less than a thread switch


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as the input of the model."""

    pixels: Pixels  # [3, height, width]
    grid: tuple[int, int] | None  # rows and columns of the visual tokens, if they have a grid
    decode_s: float  # without the wait for a thread
    thumbnail: Vector | None  # to find similar images. None if switched off, or for a blank image


@dataclass(slots=True)
class _Running:
    """The process that decodes one image, while it does."""

    process: DecodeProcess | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def abandon(self) -> None:
        """End the process, if it still decodes this image."""
        with self.lock:
            if self.process is not None:
                self.process.abandon()


class DecodePool:
    """Processes that decode image files, with a bounded queue."""

    def __init__(
        self,
        *,
        num_processes: int,
        max_pending: int,
        limits: ImageLimits,
        memory_bytes: int = DECODE_MEMORY_BYTES,
        processor_s: float = DECODE_S,
        with_thumbnails: bool = False,
    ) -> None:
        """Create the pool. Processes start when needed, or by `start`.

        Args:
            num_processes: images decoded at once.
            max_pending: images that are being decoded or wait for it. A further one is rejected at once.
            limits: which images are accepted.
            memory_bytes: that all processes together may use for images. An image waits for its share, or is rejected
                if it needs more than all of it.
            processor_s: the most processor time of one image. One that takes more is rejected.
            with_thumbnails: also make a thumbnail of every image.
        """
        self.limits = limits
        self._memory = MemoryBudget(memory_bytes)
        self._processor_s = processor_s
        self._with_thumbnails = with_thumbnails
        self._num_processes = num_processes
        self._idle: list[DecodeProcess] = []
        self._slots = threading.BoundedSemaphore(max_pending)
        self._executor = ThreadPoolExecutor(num_processes, thread_name_prefix="decode")

    def start(self) -> None:
        """Start all processes, so that no image waits for that."""
        self._idle += [DecodeProcess() for _ in range(self._num_processes - len(self._idle))]

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

        If the caller is cancelled while the image waits, the image is not decoded. If it is being decoded then, that
        ends within half a second.

        Raises:
            InvalidArgument: the image is rejected, as in `decoded_image`, or takes too long.
            ResourceExhausted: reason 'QUEUE_FULL' or 'NO_MEMORY'.
        """
        if not self._slots.acquire(blocking=False):
            raise ResourceExhausted(
                "The queue for decoding is full, retry later.", reason="QUEUE_FULL", retry_after_s=_RETRY_AFTER_S
            )
        DECODING.inc()
        running = _Running()
        work = self._executor.submit(self._decode, data, processor, running)
        # The thread may go on after the caller was cancelled, so the slot is freed when the thread is done.
        work.add_done_callback(lambda _: self._free_slot())
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(_GRACE_S, running.abandon)
            raise

    def close(self) -> None:
        """End the processes after their current images."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        end_all(self._idle)

    def _free_slot(self) -> None:
        DECODING.dec()
        self._slots.release()

    def _decode(self, data: bytes, processor: ImageProcessor, running: _Running) -> DecodedImage:
        job = Job(
            num_bytes=len(data),
            processor=processor,
            limits=self.limits,
            with_thumbnail=self._with_thumbnails,
            memory_bytes=self._memory.num_bytes,
            processor_s=self._processor_s,
        )
        try:
            process = self._idle.pop()
        except IndexError:
            process = DecodeProcess()
        running.process = process
        try:
            pixels, grid, decode_s, vector = process.decode(data, job, self._memory)
        finally:
            with running.lock:
                running.process = None
            if process.was_abandoned:
                process.end()
            if not process.has_ended:
                self._idle.append(process)
        return DecodedImage(pixels, grid, decode_s, vector)
