"""Cache of the visual tokens that this process computed."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from chassis.verified_cache import HashedData, VerifiedCache, sha256_of

LEVEL = "vision"  # in the metrics of chassis.cache_metrics


@dataclass(frozen=True, slots=True)
class VisualTokens(HashedData):
    """Visual tokens of one image, with their digest.

    `data` is bfloat16, little-endian, row-major.
    """

    shape: tuple[int, ...]  # [N, levels x D]
    grid: tuple[int, int] | None = None  # rows and columns, if the tokens have a grid

    @classmethod
    def of(cls, bits: NDArray[np.uint16], grid: tuple[int, int] | None = None) -> Self:
        """Return visual tokens from bfloat16 bit patterns."""
        data = bits.astype("<u2", copy=False).tobytes()
        return cls(data, sha256_of(data), bits.shape, grid)


class TokenCache(VerifiedCache[VisualTokens]):
    """Visual tokens of all models of this process."""

    def __init__(self, *, max_bytes: int, ttl_s: float | None) -> None:
        """Start empty, see `VerifiedCache`."""
        super().__init__(LEVEL, max_bytes=max_bytes, ttl_s=ttl_s)
