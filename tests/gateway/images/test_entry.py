"""A kept entry proves itself: what was changed, cut off or meant for another key is never used."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.entry import DamagedError, Entry, ForeignError, Wanted
from tandem.v1 import tensor_pb2

WANTED = Wanted(visual_key=b"k" * 32, vision_digest=b"v" * 32, shape=(3, 4))


def tokens_for(wanted: Wanted, data: bytes | None = None) -> tensor_pb2.VisualTokens:
    rows, columns = wanted.shape
    embeddings = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16,
        shape=wanted.shape,
        data=b"\x80\x3f" * rows * columns if data is None else data,
    )
    return tensor_pb2.VisualTokens(
        embeddings=embeddings, visual_key=wanted.visual_key, vision_digest=wanted.vision_digest
    )


ENTRY = Entry.of(tokens_for(WANTED).SerializeToString())


def test_an_entry_comes_back_as_it_was_kept() -> None:
    assert Entry.unpack(ENTRY.pack(), WANTED) == ENTRY


@given(st.integers(0, len(ENTRY.pack()) - 1), st.integers(1, 255))
def test_every_changed_byte_is_seen(at: int, change: int) -> None:
    value = bytearray(ENTRY.pack())
    value[at] ^= change
    with pytest.raises(DamagedError):
        Entry.unpack(bytes(value), WANTED)


@given(st.integers(0, len(ENTRY.pack()) - 1))
def test_every_cut_is_seen(length: int) -> None:
    with pytest.raises(DamagedError):
        Entry.unpack(ENTRY.pack()[:length], WANTED)


@given(st.binary(max_size=200))
def test_bytes_of_somebody_else_are_no_entry(value: bytes) -> None:
    with pytest.raises(DamagedError):
        Entry.unpack(value, WANTED)
    # Even with our mark and a digest that holds they are not visual tokens.
    with pytest.raises(ForeignError):
        Entry.unpack(Entry.of(value).pack(), WANTED)


@pytest.mark.parametrize(
    "other",
    [
        replace(WANTED, visual_key=b"K" * 32),
        replace(WANTED, vision_digest=b"V" * 32),
        replace(WANTED, shape=(4, 3)),
        replace(WANTED, shape=(3, 5)),
    ],
)
def test_whole_visual_tokens_of_another_kind_are_foreign(other: Wanted) -> None:
    with pytest.raises(ForeignError):
        Entry.unpack(ENTRY.pack(), other)


def test_numbers_that_are_not_finite_are_foreign_however_well_they_are_signed() -> None:
    spoilt = tokens_for(WANTED, data=b"\xff\xff" * 12)
    with pytest.raises(ForeignError):
        Entry.unpack(Entry.of(spoilt.SerializeToString()).pack(), WANTED)
