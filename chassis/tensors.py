"""Validate tensors from the wire, without torch."""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from chassis.errors import InvalidArgument
from tandem.v1 import tensor_pb2

MAX_CHUNK_BYTES = 2**20  # of one message, as in the contract

BFLOAT16_BYTES = 2
# A bfloat16 is not finite (infinity or NaN) exactly when all eight bits of its exponent are set.
_BFLOAT16_EXPONENT = np.uint16(0x7F80)


def check_tensor(tensor: tensor_pb2.Tensor, *, shape: Sequence[int], field: str) -> None:
    """Check that `tensor` is finite bfloat16 of the given shape.

    Args:
        tensor: the received message.
        shape: length of each dimension, outermost first.
        field: name of the request field, for the error.

    Raises:
        InvalidArgument: reason 'BAD_TENSOR', the type, the shape, the number of bytes or an element is wrong.
    """
    check_shape(tensor, shape=shape, field=field)
    num_bytes = prod(shape) * BFLOAT16_BYTES
    if len(tensor.data) != num_bytes:
        raise bad_tensor(field, f"must have {num_bytes} bytes of data, not {len(tensor.data)}")
    if not is_finite_bfloat16(np.frombuffer(tensor.data, dtype="<u2")):
        raise bad_tensor(field, "must hold finite numbers only, but has an infinity or NaN")


def check_shape(tensor: tensor_pb2.Tensor, *, shape: Sequence[int], field: str) -> None:
    """Check type and shape of `tensor`, but not its data.

    See `check_tensor`.
    """
    if tensor.data_type != tensor_pb2.DATA_TYPE_BFLOAT16:
        raise bad_tensor(field, "must be of type DATA_TYPE_BFLOAT16")
    if tuple(tensor.shape) != tuple(shape):
        raise bad_tensor(field, f"must have the shape {list(shape)}, not {_short(tensor.shape)}")


def split_data(data: bytes) -> Iterator[bytes]:
    """Yield at least one chunk of at most `MAX_CHUNK_BYTES`."""
    yield data[:MAX_CHUNK_BYTES]
    for start in range(MAX_CHUNK_BYTES, len(data), MAX_CHUNK_BYTES):
        yield data[start : start + MAX_CHUNK_BYTES]


def is_finite_bfloat16(bits: NDArray[np.uint16]) -> bool:
    """Return whether all bfloat16 bit patterns are finite numbers."""
    return not bool(np.any((bits & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT))


def bad_tensor(field: str, problem: str) -> InvalidArgument:
    """Return the error that names the problem of `field`."""
    return InvalidArgument(f"{field} {problem}.", reason="BAD_TENSOR", field=field)


def _short(shape: Sequence[int]) -> str:
    """Return `shape` as text of bounded length.

    A hostile tensor can have a million dimensions.
    """
    head = ", ".join(str(length) for length in shape[:8])
    return f"[{head}, ...] ({len(shape)} dimensions)" if len(shape) > 8 else f"[{head}]"
