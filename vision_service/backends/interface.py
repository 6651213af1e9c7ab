"""The protocol of backends.

B batch, S image side in pixels, K visual tokens, D decoder width
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class VisionBackend(Protocol):
    """A loaded vision half, called from one thread."""

    name: str  # kind of backend. Part of the encoder id, because other kernels round differently
    device: str  # 'cpu' or 'cuda:<index>'
    precision: str  # type of the arithmetic: 'float32' or 'bfloat16'
    num_parameters: int
    num_weight_bytes: int

    def encode(self, pixels_B3SS: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Return visual tokens, [B, K, D], as bfloat16 bit patterns.

        numpy has no bfloat16 type.
        """
        ...
