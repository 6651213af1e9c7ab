"""Tensors as weight files store them. Needs no torch."""

import hashlib
from math import prod
from typing import Protocol

from checkpoint.identity import TensorDigest

# The types of weights, with bytes per element. The integers are of matrices with 8 or 4 bits a weight.
FLOAT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
ELEMENT_BYTES = {**FLOAT_BYTES, "int8": 1, "int32": 4, "int64": 8}


class StoredTensor(Protocol):
    """A tensor of a weight file, read on demand."""

    @property
    def dtype(self) -> str:
        """Element type, such as 'bfloat16'."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension, outermost first."""

    def elements(self) -> memoryview:
        """Return the elements as bytes: row-major, little-endian."""

    def drop_pages(self) -> None:
        """Free the memory that reading the elements took.

        The kernel would keep the pages while the file is mapped, so loading a model would take twice its size. A later
        read gets them from the file again.
        """


def num_bytes(tensor: StoredTensor) -> int:
    """Return the bytes of the elements."""
    return prod(tensor.shape) * ELEMENT_BYTES[tensor.dtype]


def tensor_digest(tensor: StoredTensor) -> TensorDigest:
    """Return the facts that a half's digest covers."""
    return TensorDigest(tensor.dtype, tensor.shape, hashlib.sha256(tensor.elements()).digest())
