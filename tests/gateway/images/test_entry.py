"""Stored entries are verified: changed, truncated or foreign ones fail."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.entry import CorruptedEntryError, Entry, ExpectedTokens, ForeignTokensError, TokenShape
from tandem.v1 import tensor_pb2

EXPECTED = ExpectedTokens(visual_key=b"k" * 32, vision_digest=b"v" * 32, shape=TokenShape(3), token_width=4)


def tokens_for(expected: ExpectedTokens, data: bytes | None = None) -> tensor_pb2.VisualTokens:
    rows, columns = expected.shape.num_visual_tokens, expected.token_width
    embeddings = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16,
        shape=(rows, columns),
        data=b"\x80\x3f" * rows * columns if data is None else data,
    )
    return tensor_pb2.VisualTokens(
        embeddings=embeddings, visual_key=expected.visual_key, vision_digest=expected.vision_digest
    )


ENTRY = Entry.of(tokens_for(EXPECTED).SerializeToString())


def test_an_entry_survives_packing() -> None:
    assert Entry.unpack(ENTRY.pack(), EXPECTED) == ENTRY


@given(st.integers(0, len(ENTRY.pack()) - 1), st.integers(1, 255))
def test_every_changed_byte_is_detected(at: int, change: int) -> None:
    value = bytearray(ENTRY.pack())
    value[at] ^= change
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(bytes(value), EXPECTED)


@given(st.integers(0, len(ENTRY.pack()) - 1))
def test_every_truncation_is_detected(length: int) -> None:
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(ENTRY.pack()[:length], EXPECTED)


SECRET = b"s" * 32
SIGNED = ENTRY.pack(SECRET)


def test_a_signed_entry_survives_packing() -> None:
    assert Entry.unpack(SIGNED, EXPECTED, SECRET) == ENTRY


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        (ENTRY.pack(), SECRET),
        (SIGNED, None),
        (ENTRY.pack(b"t" * 32), SECRET),
        (SIGNED, b"t" * 32),
        (SIGNED[:-1], SECRET),
    ],
)
def test_what_another_secret_or_none_signed_is_not_believed(value: bytes, secret: bytes | None) -> None:
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(value, EXPECTED, secret)


@given(st.binary(max_size=200))
def test_other_bytes_are_not_an_entry(value: bytes) -> None:
    with pytest.raises(CorruptedEntryError):
        Entry.unpack(value, EXPECTED)
    # With the right prefix and digest they are an entry, but still not visual tokens.
    with pytest.raises(ForeignTokensError):
        Entry.unpack(Entry.of(value).pack(), EXPECTED)


@pytest.mark.parametrize(
    "other",
    [
        replace(EXPECTED, visual_key=b"K" * 32),
        replace(EXPECTED, vision_digest=b"V" * 32),
        replace(EXPECTED, shape=TokenShape(4), token_width=3),
        replace(EXPECTED, token_width=5),
        replace(EXPECTED, shape=TokenShape(3, grid=(1, 3))),
    ],
)
def test_intact_tokens_with_other_properties_are_foreign(other: ExpectedTokens) -> None:
    with pytest.raises(ForeignTokensError):
        Entry.unpack(ENTRY.pack(), other)


def test_infinite_embeddings_are_rejected_despite_a_valid_digest() -> None:
    infinite = tokens_for(EXPECTED, data=b"\xff\xff" * 12)
    with pytest.raises(ForeignTokensError):
        Entry.unpack(Entry.of(infinite.SerializeToString()).pack(), EXPECTED)
