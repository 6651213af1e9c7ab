"""The protocol of backends, and the options they are opened with.

N visual tokens of an image, D decoder width
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoint.exports import Precision

PerformanceHint = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """How to compute, and the largest batch."""

    precision: Precision = "bfloat16"  # of weights and arithmetic
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_batch_size: int = 16  # images of one forward pass
    max_resized_pixels: int = 2**20  # of one image, for families that take images of any size
    openvino_hint: PerformanceHint = "latency"  # one run on all threads, or several side by side

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
