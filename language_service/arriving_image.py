"""Collect the visual tokens of one image, chunk by chunk."""

from hashlib import sha256
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chassis.errors import InvalidArgument
from chassis.tensors import BFLOAT16_BYTES, is_finite_bfloat16
from language_service.engine import Grid

# N visual tokens, X elements of each, all levels together

EMBEDDINGS = "image.visual_tokens.embeddings"  # field of a request

_DOMAIN = b"tandem/image-content/1\n"


class Image(NamedTuple):
    """A complete image of a prompt."""

    embeddings_NX: Tensor  # bfloat16
    content_key: bytes  # 32 bytes, over visual key, grid and embeddings
    grid: Grid | None


class ArrivingImage:
    """An image whose data is still arriving.

    It takes the memory of the data that has arrived. The prefix cache knows it by a digest of key, grid and embeddings:
    the key alone is the caller's word, and other embeddings under it would change the answers of the next caller.
    """

    def __init__(self, shape: tuple[int, int], visual_key: bytes, grid: Grid | None) -> None:
        """Expect embeddings of `shape` [N, X]."""
        self._shape, self._grid = shape, grid
        self._num_bytes = prod(shape) * BFLOAT16_BYTES
        self._data = bytearray()
        rows, columns = grid or (0, 0)
        self._content = sha256(_DOMAIN + visual_key + rows.to_bytes(8) + columns.to_bytes(8))

    @property
    def is_complete(self) -> bool:
        """Whether all data has arrived."""
        return len(self._data) == self._num_bytes

    @property
    def progress(self) -> str:
        """Return how much has arrived, for error messages."""
        return f"{len(self._data)} of {self._num_bytes} bytes"

    def add(self, data: bytes, field: str) -> None:
        """Add the next bytes.

        Args:
            data: any number of bytes.
            field: name of the request field, for the error.

        Raises:
            InvalidArgument: reason 'BAD_TENSOR', it is more data than expected, or not finite.
        """
        if len(self._data) + len(data) > self._num_bytes:
            raise InvalidArgument(
                f"{EMBEDDINGS} must have {self._num_bytes} bytes of data, but more arrived.",
                reason="BAD_TENSOR",
                field=field,
            )
        num_checked = len(self._data) // BFLOAT16_BYTES  # a chunk may end inside a number
        self._data += data
        self._content.update(data)
        num_new = len(self._data) // BFLOAT16_BYTES - num_checked
        bits = np.frombuffer(self._data, dtype="<u2", count=num_new, offset=num_checked * BFLOAT16_BYTES)
        if not is_finite_bfloat16(bits):
            raise InvalidArgument(
                f"{EMBEDDINGS} must hold finite numbers only, but has an infinity or NaN.",
                reason="BAD_TENSOR",
                field=field,
            )

    def finish(self) -> Image:
        """Return the complete image. Its tensor takes over the data."""
        embeddings_NX = torch.frombuffer(self._data, dtype=torch.bfloat16).view(self._shape)
        return Image(embeddings_NX, self._content.digest(), self._grid)
