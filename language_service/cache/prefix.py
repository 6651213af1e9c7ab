"""Names for what blocks hold, so that equal beginnings of prompts share them: plain Python, no tensors."""

from array import array
from collections.abc import Sequence
from hashlib import sha256

_DOMAIN = b"tandem prefix block v1\0"
_IMAGE = 2**31  # above every token id; an image's positions count up from here


def root_name(*, model_digest: bytes, salt: bytes) -> bytes:
    """Return what the names of all prompts to one model (32 bytes) under one salt (any length) begin with."""
    return sha256(_DOMAIN + model_digest + salt).digest()


class PrefixNames:
    """Names of the full blocks of one growing sequence.

    A name is the SHA-256 of the block's content and of the name before it, so it stands for everything up to the
    block's end, under the model and salt of the root. It does not depend on how the tokens were split on arrival.
    """

    def __init__(self, root: bytes, *, block_size: int) -> None:
        self.names: list[bytes] = []
        self._last = root
        self._block_size = block_size
        # Of the block that is filling. One code a position, then a key for each run of an image's positions: where
        # a run begins follows from the codes, since each image's begin at 0, so no two contents look alike.
        self._codes = array("I")
        self._keys = bytearray()

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Note the next tokens, each below 2**31."""
        self._add(token_ids, b"")

    def add_image(self, visual_key: bytes, num_tokens: int) -> None:
        """Note an image of `num_tokens` positions; its key (32 bytes) names their content."""
        self._add(range(_IMAGE, _IMAGE + num_tokens), visual_key)

    def _add(self, codes: Sequence[int], key: bytes) -> None:
        start = 0
        while start < len(codes):
            end = start + self._block_size - len(self._codes)
            self._codes.extend(codes[start:end])
            self._keys += key
            if len(self._codes) == self._block_size:
                self._last = sha256(self._last + self._codes.tobytes() + self._keys).digest()
                self.names.append(self._last)
                self._codes, self._keys = array("I"), bytearray()
            start = end
