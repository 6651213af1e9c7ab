"""Visual tokens as the gateway's caches store them."""

from dataclasses import dataclass
from typing import Self

from google.protobuf.message import DecodeError

from chassis.errors import InvalidArgument
from chassis.tensors import BFLOAT16_BYTES, check_tensor
from chassis.verified_cache import HashedData, sha256_of
from checkpoint.identity import DIGEST_BYTES
from tandem.v1 import tensor_pb2

# Format version of packed entries. Entries with another prefix are misses.
_PREFIX = b"tandem visual tokens 1\n"
_HEADER_BYTES = len(_PREFIX) + DIGEST_BYTES


class CorruptedEntryError(Exception):
    """A stored value is not a complete, unchanged entry."""


class ForeignTokensError(Exception):
    """Intact visual tokens of another image or encoder."""


@dataclass(frozen=True, slots=True)
class TokenShape:
    """Number and grid of one image's visual tokens."""

    num_visual_tokens: int
    grid: tuple[int, int] | None = None  # rows and columns, if the tokens have a grid


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTokens:
    """The visual tokens that may answer for an image."""

    visual_key: bytes
    vision_digest: bytes  # of the vision half that encodes
    shape: TokenShape
    token_width: int  # elements of one visual token, all levels together

    def check_key(self, tokens: tensor_pb2.VisualTokens) -> None:
        """Check the visual key and the vision digest.

        Raises:
            ForeignTokensError: the tokens belong to another image, tenant or encoder.
        """
        if tokens.visual_key != self.visual_key or tokens.vision_digest != self.vision_digest:
            raise ForeignTokensError("other visual tokens")

    def check_embeddings(self, tokens: tensor_pb2.VisualTokens) -> None:
        """Check that the decoder can use the embeddings.

        Raises:
            InvalidArgument: reason 'BAD_TENSOR'.
        """
        shape = (self.shape.num_visual_tokens, self.token_width)
        check_tensor(tokens.embeddings, shape=shape, field="embeddings")
        grid = (tokens.grid.rows, tokens.grid.columns) if tokens.HasField("grid") else None
        if grid != self.shape.grid:
            raise InvalidArgument(f"grid must be {self.shape.grid}, not {grid}.", reason="BAD_TENSOR", field="grid")

    @property
    def num_bytes(self) -> int:
        """Bytes of the embeddings."""
        return self.shape.num_visual_tokens * self.token_width * BFLOAT16_BYTES


@dataclass(frozen=True, slots=True)
class Entry(HashedData):
    """One image's visual tokens in a cache.

    `data` is a serialized `VisualTokens`: embeddings with their shape, visual key and vision digest.
    """

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return an entry of serialized `VisualTokens`."""
        return cls(data, sha256_of(data))

    def pack(self) -> bytes:
        """Return prefix, digest and data as one value."""
        return _PREFIX + self.sha256 + self.data

    @classmethod
    def unpack(cls, value: bytes, expected: ExpectedTokens) -> Self:
        """Read a packed entry and verify all of it.

        Raises:
            CorruptedEntryError: the value is truncated, changed, or not an entry.
            ForeignTokensError: the entry contains other visual tokens than expected.
        """
        if not value.startswith(_PREFIX):
            raise CorruptedEntryError("not an entry")
        entry = cls(value[_HEADER_BYTES:], value[len(_PREFIX) : _HEADER_BYTES])
        if not entry.is_intact:
            raise CorruptedEntryError("digest mismatch")
        try:
            tokens = tensor_pb2.VisualTokens.FromString(entry.data)
            expected.check_key(tokens)
            expected.check_embeddings(tokens)
        except DecodeError:
            raise ForeignTokensError("not visual tokens") from None
        except InvalidArgument as error:
            raise ForeignTokensError(error.message) from None
        return entry
