"""The tensor check against a simple check of each element."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from chassis.tensors import check_shape, check_tensor
from tandem.v1 import tensor_pb2

BF16 = tensor_pb2.DATA_TYPE_BFLOAT16


def wire(bits: list[int], shape: tuple[int, ...]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(data_type=BF16, shape=shape, data=struct.pack(f"<{len(bits)}H", *bits))


def as_float(bits: int) -> float:
    """Return a bfloat16, the upper half of a float32."""
    value: float = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return value


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40))
def test_only_finite_tensors_pass(bits: list[int]) -> None:
    tensor = wire(bits, (1, len(bits)))
    if all(math.isfinite(as_float(one)) for one in bits):
        check_tensor(tensor, shape=[1, len(bits)], field="t")
    else:
        with pytest.raises(InvalidArgument, match="finite"):
            check_tensor(tensor, shape=[1, len(bits)], field="t")


def test_every_exponent_is_finite_exactly_if_it_is_in_float32() -> None:
    for bits in range(0, 0x10000, 0x80):  # all signs and exponents, with mantissa 0 and 1
        for pattern in (bits, bits | 1):
            finite = bool(np.isfinite(np.array([pattern << 16], dtype=np.uint32).view(np.float32))[0])
            try:
                check_tensor(wire([pattern], (1,)), shape=[1], field="t")
                passed = True
            except InvalidArgument:
                passed = False
            assert passed == finite, hex(pattern)


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (tensor_pb2.Tensor(shape=[2, 3], data=bytes(12)), "type"),
        (wire([0] * 6, (3, 2)), "shape"),
        (wire([0] * 6, (6,)), "shape"),
        (wire([0] * 6, (2, 3, 1)), "shape"),
        (wire([], ()), "shape"),
        (wire([], (1,) * 100_000), "100000 dimensions"),
        (wire([0] * 5, (2, 3)), "12 bytes"),
        (wire([0] * 7, (2, 3)), "12 bytes"),
        (tensor_pb2.Tensor(data_type=BF16, shape=[2, 3], data=bytes(11)), "12 bytes"),
    ],
)
def test_the_error_for_an_invalid_tensor_names_the_problem_and_the_field(tensor: tensor_pb2.Tensor, word: str) -> None:
    with pytest.raises(InvalidArgument, match=word) as caught:
        check_tensor(tensor, shape=(2, 3), field="visual_tokens.embeddings")
    assert (caught.value.reason, caught.value.field) == ("BAD_TENSOR", "visual_tokens.embeddings")
    assert len(caught.value.message) < 200


def test_a_shape_is_checked_before_the_data_arrives() -> None:
    check_shape(wire([], (2, 3)), shape=(2, 3), field="t")
    for tensor in (wire([], (3, 2)), tensor_pb2.Tensor(shape=[2, 3])):
        with pytest.raises(InvalidArgument) as caught:
            check_shape(tensor, shape=(2, 3), field="t")
        assert (caught.value.reason, caught.value.field) == ("BAD_TENSOR", "t")
