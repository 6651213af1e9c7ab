"""Visual tokens as the gateway's caches keep them: with a digest that proves them, checked against what is wanted."""

from dataclasses import dataclass
from typing import Self

from google.protobuf.message import DecodeError

from chassis.errors import InvalidArgument
from chassis.tensors import check_tensor
from chassis.verified_cache import HashedData, sha256_of
from checkpoint.identity import DIGEST_BYTES
from tandem.v1 import tensor_pb2

# The form of a packed entry; another form takes another mark, and the other one's entries are then no entries.
_MARK = b"tandem visual tokens 1\n"
_HEADER_BYTES = len(_MARK) + DIGEST_BYTES


class DamagedError(Exception):
    """An entry is not the bytes that were kept."""


class ForeignError(Exception):
    """Visual tokens are whole, but not those that are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which visual tokens answer for an image."""

    visual_key: bytes
    vision_digest: bytes  # of the vision half that makes them
    shape: tuple[int, int]  # [visual tokens, token width]

    def check_key(self, tokens: tensor_pb2.VisualTokens) -> None:
        """Check that visual tokens say they are these.

        Raises:
            ForeignError: they are another image's, tenant's or encoder's.
        """
        if tokens.visual_key != self.visual_key or tokens.vision_digest != self.vision_digest:
            raise ForeignError("other visual tokens")

    def check_embeddings(self, tokens: tensor_pb2.VisualTokens) -> None:
        """Check that visual tokens can be given to the decoder.

        Raises:
            InvalidArgument: reason 'BAD_TENSOR'.
        """
        check_tensor(tokens.embeddings, shape=self.shape, field="embeddings")


@dataclass(frozen=True, slots=True)
class Entry(HashedData):
    """One image's visual tokens in a cache.

    `data` is a serialized `VisualTokens`: embeddings with their shape, visual key and vision digest.
    """

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return serialized `VisualTokens` with their digest."""
        return cls(data, sha256_of(data))

    def pack(self) -> bytes:
        """Return the entry as one value."""
        return _MARK + self.sha256 + self.data

    @classmethod
    def unpack(cls, value: bytes, wanted: Wanted) -> Self:
        """Read a packed entry and check everything it says of itself.

        Raises:
            DamagedError: it is cut off, changed, or none at all.
            ForeignError: it holds other visual tokens than are wanted.
        """
        if not value.startswith(_MARK):
            raise DamagedError("not an entry")
        entry = cls(value[_HEADER_BYTES:], value[len(_MARK) : _HEADER_BYTES])
        if not entry.is_intact:
            raise DamagedError("the digest does not hold")
        try:
            tokens = tensor_pb2.VisualTokens.FromString(entry.data)
            wanted.check_key(tokens)
            wanted.check_embeddings(tokens)
        except DecodeError:
            raise ForeignError("no visual tokens") from None
        except InvalidArgument as error:
            raise ForeignError(error.message) from None
        return entry
