"""The protocol of backends.

N visual tokens of an image, D decoder width
"""

from collections.abc import Sequence
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

    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return the visual tokens of each image.

        They are bfloat16 bit patterns [N, levels x D], because numpy has no bfloat16. The results share no memory.

        Args:
            images: normalised RGB pixels of each, [3, height, width].
        """
        ...
