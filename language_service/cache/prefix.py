"""Hash the content of blocks, to share equal prefixes."""

from array import array
from collections.abc import Sequence
from hashlib import sha256

_DOMAIN = b"tandem prefix block v1\0"
_IMAGE = 2**31  # above every token id. The positions of an image count up from here.


def root_hash(*, model_digest: bytes, salt: bytes) -> bytes:
    """Return the hash that every prompt's chain starts from.

    Args:
        model_digest: of the language half, 32 bytes.
        salt: any length. Prompts share blocks only under the same salt.
    """
    return sha256(_DOMAIN + model_digest + salt).digest()


class PrefixHashes:
    """Hashes of the full blocks of one growing sequence.

    A hash is the SHA-256 of the hash before it and of the block's content. So it identifies all tokens up to the
    block's end, under the model and salt of the root. It does not depend on how the tokens were split on arrival.
    """

    def __init__(self, root: bytes, *, block_size: int) -> None:
        """Start a chain at `root`, with blocks of `block_size` tokens."""
        self.hashes: list[bytes] = []
        self._last = root
        self._block_size = block_size
        # Content of the block that is filling: one code per position, then one visual key per run of image positions.
        # The codes of every image start at the same value, which marks where a run begins. So different contents never
        # give the same bytes.
        self._codes = array("I")
        self._keys = bytearray()

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add the next tokens, each below 2**31."""
        self._add(token_ids, b"")

    def add_image(self, visual_key: bytes, num_tokens: int) -> None:
        """Add an image of `num_tokens` positions.

        The key of 32 bytes identifies its content.
        """
        self._add(range(_IMAGE, _IMAGE + num_tokens), visual_key)

    def _add(self, codes: Sequence[int], key: bytes) -> None:
        start = 0
        while start < len(codes):
            end = start + self._block_size - len(self._codes)
            self._codes.extend(codes[start:end])
            self._keys += key
            if len(self._codes) == self._block_size:
                self._last = sha256(self._last + self._codes.tobytes() + self._keys).digest()
                self.hashes.append(self._last)
                self._codes, self._keys = array("I"), bytearray()
            start = end
