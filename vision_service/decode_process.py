"""Keep a process that decodes images, and end it.

See `decode_worker` for the other side.
"""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from math import prod
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter

from chassis.errors import Cancelled, InvalidArgument, ResourceExhausted, TandemError
from processing import rejected_image
from vision_service import decode_worker
from vision_service.decode_worker import Job
from vision_service.memory_budget import MemoryBudget
from vision_service.similar_images import WIDTH, Vector

ENDED = Counter(
    "tandem_vision_decoders_ended",
    "Processes that ended while they decoded an image, by cause: time, abandoned or crash.",
    ["cause"],
)

# The worker sees nothing else of the environment, where services have passwords.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")
_MAX_MESSAGE_BYTES = 2**16
_MAX_SIDE = 2**16  # of the model's input, pixels
_ERRORS: dict[str, type[TandemError]] = {one.__name__: one for one in (InvalidArgument, ResourceExhausted)}

_log = structlog.get_logger()


class DecodeProcess:
    """A process that decodes one image after another."""

    def __init__(self) -> None:
        """Start it, which takes a third of a second."""
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, sys.path))  # the packages may lie where only this process looks for them
        self._file = os.memfd_create("image")  # the image, then its pixels
        with theirs:
            self._program = subprocess.Popen(
                # -P: its folder is no place of modules
                [sys.executable, "-P", decode_worker.__file__, str(theirs.fileno()), str(self._file)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._file],
                env={"PYTHONPATH": path} | {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                cwd=Path("/"),
            )
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self.was_abandoned = False
        self.has_ended = False

    @property
    def process_id(self) -> int:
        """Of the program."""
        return self._program.pid

    def decode(
        self, data: bytes, job: Job, memory: MemoryBudget
    ) -> tuple[NDArray[np.float32], tuple[int, int] | None, float, Vector | None]:
        """Return pixels, grid, seconds and thumbnail of an image.

        Raises:
            InvalidArgument: the image is rejected, also because the process ended over it.
            ResourceExhausted: reason 'NO_MEMORY'.
            Cancelled: the image was abandoned.
        """
        try:
            os.pwrite(self._file, data, 0)
            self._connection.send_bytes(pickle.dumps(job))
            reply = self._receive()
            if "needs" not in reply:
                return self._result(reply, job)
            with memory.reserve(min(int(reply["needs"]), memory.num_bytes)):
                self._connection.send_bytes(b"")
                return self._result(self._receive(), job)
        except (EOFError, OSError) as error:
            raise self._why_it_ended() from error
        except (ValueError, KeyError, TypeError) as error:  # a stranger's image has taken it over
            self.end()
            _log.error("a decoder sent what none sends", error=type(error).__name__)
            raise rejected_image("IMAGE_UNSUPPORTED", "The image cannot be decoded.") from error

    def abandon(self) -> None:
        """End the process, because nobody waits for its image."""
        with self._lock:
            self.was_abandoned = True
            self._program.kill()

    def end(self) -> None:
        """End the process."""
        with self._lock:
            self.has_ended = True
            self._program.kill()
            self._program.wait()
            if not self._connection.closed:
                self._connection.close()
                os.close(self._file)

    def _receive(self) -> dict[str, Any]:
        return dict(json.loads(self._connection.recv_bytes(_MAX_MESSAGE_BYTES)))

    def _result(
        self, reply: dict[str, Any], job: Job
    ) -> tuple[NDArray[np.float32], tuple[int, int] | None, float, Vector | None]:
        if "error" in reply:
            raise _ERRORS[reply["error"]](
                str(reply["message"]),
                reason=str(reply["reason"]),
                field=None if reply["field"] is None else str(reply["field"]),
                retry_after_s=None if reply["retry_after_s"] is None else float(reply["retry_after_s"]),
            )
        channels, height, width = map(int, reply["shape"])
        most = max(job.processor.max_visual_tokens, 1)
        if channels != 3 or not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE):
            raise ValueError("shape")
        grid = None if reply["grid"] is None else (int(reply["grid"][0]), int(reply["grid"][1]))
        if grid is not None and (min(grid) < 1 or prod(grid) > most):
            raise ValueError("grid")
        pixels = np.empty((channels, height, width), np.float32)
        vector = np.empty(WIDTH, np.float32) if reply["has_thumbnail"] else None
        arrays: list[NDArray[np.float32]] = [pixels] if vector is None else [pixels, vector]
        if os.preadv(self._file, [array.data for array in arrays], 0) != sum(array.nbytes for array in arrays):
            raise ValueError("size")
        os.ftruncate(self._file, 0)
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("elements")
        return pixels, grid, float(reply["decode_s"]), vector

    def _why_it_ended(self) -> TandemError:
        """Return the error for the caller of the image."""
        self.end()
        status = self._program.returncode
        cause = "abandoned" if self.was_abandoned else "time" if status == -signal.SIGPROF else "crash"
        ENDED.labels(cause).inc()
        if cause == "abandoned":
            return Cancelled("The caller left before the image was decoded.")
        _log.warning("a decoder ended while it decoded an image", cause=cause, status=status)
        if cause == "time":
            return rejected_image("IMAGE_UNSUPPORTED", "The image takes too long to decode, save it again.")
        return rejected_image("IMAGE_UNSUPPORTED", "The decoder failed on this image, save it again.")


def end_all(processes: "list[DecodeProcess]") -> None:
    """End processes that decode nothing."""
    for process in processes:
        with suppress(OSError):
            process.end()
