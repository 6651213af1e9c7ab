"""Visual tokens as the gateway's caches store them."""

import hmac
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
_SIGNED_PREFIX = b"tandem visual tokens 2\n"
_HEADER_BYTES = len(_PREFIX) + DIGEST_BYTES


class CorruptedEntryError(Exception):
    """A stored value is not a complete, genuine entry."""


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

    def pack(self, secret: bytes | None = None) -> bytes:
        """Return prefix, proof and data as one value.

        Args:
            secret: of all gateways. The proof is then a signature (HMAC-SHA256). Without it, it is the digest, which
                everybody can compute.
        """
        return _prefix(secret) + self._proof(secret) + self.data

    @classmethod
    def unpack(cls, value: bytes, expected: ExpectedTokens, secret: bytes | None = None) -> Self:
        """Read a packed entry and verify all of it.

        Args:
            value: a packed entry, from anywhere.
            expected: the visual tokens that are looked for.
            secret: of all gateways, see `pack`.

        Raises:
            CorruptedEntryError: the value is truncated, changed, not signed with `secret`, or not an entry.
            ForeignTokensError: the entry contains other visual tokens than expected.
        """
        if not value.startswith(_prefix(secret)):
            raise CorruptedEntryError("not an entry")
        entry = cls.of(value[_HEADER_BYTES:])
        if not hmac.compare_digest(value[len(_PREFIX) : _HEADER_BYTES], entry._proof(secret)):
            raise CorruptedEntryError("digest or signature mismatch")
        try:
            tokens = tensor_pb2.VisualTokens.FromString(entry.data)
            expected.check_key(tokens)
            expected.check_embeddings(tokens)
        except DecodeError:
            raise ForeignTokensError("not visual tokens") from None
        except InvalidArgument as error:
            raise ForeignTokensError(error.message) from None
        return entry

    def _proof(self, secret: bytes | None) -> bytes:
        return self.sha256 if secret is None else hmac.digest(secret, self.data, "sha256")


def _prefix(secret: bytes | None) -> bytes:
    return _PREFIX if secret is None else _SIGNED_PREFIX
