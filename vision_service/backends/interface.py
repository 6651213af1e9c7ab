"""The protocol of backends, and the options they are opened with.

N visual tokens of an image, D decoder width
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoint.exports import Precision

PerformanceHint = Literal["latency", "throughput"]
SharedMemory = Literal["none", "system", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonOptions:
    """Where Triton is, and how to talk to it."""

    address: str = "127.0.0.1:8001"  # of its gRPC endpoint
    model: str = ""  # in its repository. Empty is the name in the tag
    timeout_s: float = 30.0  # of one call
    shared_memory: SharedMemory = "none"  # carries inputs to a Triton on the same host


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """How to compute, and the largest batch."""

    precision: Precision = "bfloat16"  # of weights and arithmetic
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_batch_size: int = 16  # images of one forward pass
    max_resized_pixels: int = 2**20  # of one image, for families that take images of any size
    openvino_hint: PerformanceHint = "latency"  # one run on all threads, or several side by side
    triton: TritonOptions = TritonOptions()
    loop: asyncio.AbstractEventLoop | None = None  # of the service, for backends in another process

    @property
    def dtype(self) -> torch.dtype:
        """The precision as a torch type."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype


class VisionBackend(Protocol):
    """A loaded vision half, called from one thread."""

    name: str  # kind of backend. Part of the encoder id, because other kernels round differently
    device: str  # 'cpu', 'cuda:<index>' or 'remote'
    export_digest: bytes  # of the export that runs, 32 bytes. Empty if the checkpoint's own weights run
    num_parameters: int
    num_weight_bytes: int

    @property
    def precision(self) -> str:
        """Type of the arithmetic: 'float32', 'float16' or 'bfloat16'."""
        ...

    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return the visual tokens of each image.

        They are bfloat16 bit patterns [N, levels x D], because numpy has no bfloat16. The results share no memory.

        Args:
            images: normalised RGB pixels of each, [3, height, width].
        """
        ...


@runtime_checkable
class RemoteBackend(Protocol):
    """Methods of a `VisionBackend` in another process.

    It forms batches itself, so it takes single images, any number at once, on the service's event loop.
    """

    async def encode_async(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return the visual tokens of each image, as `VisionBackend.encode` does.

        If the caller is cancelled, the work in the other process is, too.
        """
        ...

    async def is_ready(self) -> bool:
        """Return whether the other process can encode now."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...
