"""Decode images of strangers in a process that can be ended.

Run as a program with a socket and a file in memory as its arguments. The kernel ends it when an image takes too much
processor time, and its allocations fail beyond the memory that was reserved for the image.

Messages of the service: a `Job` by pickle. Messages of the worker: JSON with the bytes that decoding needs. The service
replies with an empty message once they are free. Then JSON with the sizes of the result, or with an error. The image
and the result are in the file, which is faster for megabytes. The worker reads files of strangers, so the service reads
nothing of it by pickle.
"""

import json
import os
import pickle
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from chassis.errors import TandemError
from chassis.own_memory import limit_memory
from processing import ImageProcessor
from vision_service.image_reader import FILE_COPIES, ImageLimits, decoded_image
from vision_service.similar_images import thumbnail_vector

# Beyond the reserved bytes: the worker's own, and per pixel of the model's input, which is scaled in float64.
_OWN_BYTES = 96 * 2**20
_INPUT_BYTES = 64
_MAX_FILE_BYTES = 2**29
_KILL_FIRST = "800"  # of 1000, in place of the service, when the machine runs out of memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image to decode, at the start of the file."""

    num_bytes: int
    processor: ImageProcessor
    limits: ImageLimits
    with_thumbnail: bool
    memory_bytes: int  # the most that can be reserved
    processor_s: float  # the most processor time


def main() -> None:
    """Decode images until the service closes the socket."""
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the service
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES,) * 2)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_KILL_FIRST)
    connection, file = Connection(socket.socket(fileno=int(sys.argv[1])).detach()), int(sys.argv[2])
    with suppress(EOFError, OSError):
        while True:
            _decode(connection, file, pickle.loads(connection.recv_bytes()))


def _decode(connection: Connection, file: int, job: Job) -> None:
    """Decode one image, and send pixels or an error."""
    data = os.pread(file, job.num_bytes, 0)
    os.ftruncate(file, 0)
    signal.setitimer(signal.ITIMER_PROF, job.processor_s)  # the default action of the signal ends the process
    limit_memory(len(data) * FILE_COPIES + _OWN_BYTES)  # until its size is known
    budget = _ServicesBudget(connection, job)
    started = time.perf_counter()
    try:
        with decoded_image(data, job.limits, budget) as image:
            vector = thumbnail_vector(image) if job.with_thumbnail else None
            pixels, grid = job.processor.to_pixels(image), job.processor.grid(*image.size)
    except TandemError as error:
        _send(connection, error=type(error).__name__, **_details(error))
    else:
        decode_s = time.perf_counter() - started - budget.waited_s
        os.pwritev(file, [pixels.data] if vector is None else [pixels.data, vector.data], 0)
        _send(connection, shape=pixels.shape, grid=grid, decode_s=decode_s, has_thumbnail=vector is not None)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _details(error: TandemError) -> dict[str, Any]:
    return {
        "message": error.message,
        "reason": error.reason,
        "field": error.field,
        "retry_after_s": error.retry_after_s,
    }


def _send(connection: Connection, **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


class _ServicesBudget:
    """Reserves memory from the service, which all workers share."""

    def __init__(self, connection: Connection, job: Job) -> None:
        self.num_bytes = job.memory_bytes
        self.waited_s = 0.0
        self._connection = connection
        self._input_bytes = _INPUT_BYTES * max(job.processor.max_pixels, job.processor.square_side**2)

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Wait until the service has free bytes."""
        started = time.perf_counter()
        _send(self._connection, needs=num_bytes)
        self._connection.recv_bytes()
        self.waited_s = time.perf_counter() - started
        limit_memory(num_bytes + self._input_bytes + _OWN_BYTES)
        yield


if __name__ == "__main__":
    main()
