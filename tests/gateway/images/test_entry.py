"""A kept entry proves itself: what was changed, cut off or meant for another key is never used."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.entry import CorruptedEntryError, Entry, ExpectedTokens, ForeignTokensError
from tandem.v1 import tensor_pb2

EXPECTED = ExpectedTokens(visual_key=b"k" * 32, vision_digest=b"v" * 32, shape=(3, 4))


def tokens_for(wanted: ExpectedTokens, data: bytes | None = None) -> tensor_pb2.VisualTokens:
    rows, columns = wanted.shape
    embeddings = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16,
        shape=wanted.shape,
        data=b"\x80\x3f" * rows * columns if data is None else data,
    )
    return tensor_pb2.VisualTokens(
        embeddings=embeddings, visual_key=wanted.visual_key, vision_digest=wanted.vision_digest
    )


ENTRY = Entry.of(tokens_for(EXPECTED).SerializeToString())


def test_an_entry_comes_back_as_it_was_kept() -> None:
    assert Entry.unpack(ENTRY.pack(), EXPECTED) == ENTRY


@given(st.integers(0, len(ENTRY.pack()) - 1), st.integers(1, 255))
def test_every_changed_byte_is_seen(at: int, change: int) -> None:
    value = bytearray(ENTRY.pack())
    value[at] ^= change
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(bytes(value), EXPECTED)


@given(st.integers(0, len(ENTRY.pack()) - 1))
def test_every_cut_is_seen(length: int) -> None:
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(ENTRY.pack()[:length], EXPECTED)


@given(st.binary(max_size=200))
def test_bytes_of_somebody_else_are_no_entry(value: bytes) -> None:
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(value, EXPECTED)
    # Even with our mark and a digest that holds they are not visual tokens.
    with pytest.raises(ForeignTokensError):
        Entry.unpack(Entry.of(value).pack(), EXPECTED)


@pytest.mark.parametrize(
    "other",
    [
        replace(EXPECTED, visual_key=b"K" * 32),
        replace(EXPECTED, vision_digest=b"V" * 32),
        replace(EXPECTED, shape=(4, 3)),
        replace(EXPECTED, shape=(3, 5)),
    ],
)
def test_whole_visual_tokens_of_another_kind_are_foreign(other: ExpectedTokens) -> None:
    with pytest.raises(ForeignTokensError):
        Entry.unpack(ENTRY.pack(), other)


def test_numbers_that_are_not_finite_are_foreign_however_well_they_are_signed() -> None:
    spoilt = tokens_for(EXPECTED, data=b"\xff\xff" * 12)
    with pytest.raises(ForeignTokensError):
        Entry.unpack(Entry.of(spoilt.SerializeToString()).pack(), EXPECTED)
