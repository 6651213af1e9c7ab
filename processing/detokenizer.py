"""Turn token ids into text, one token at a time.

A token of byte-level BPE can end inside a character, and SentencePiece writes rare characters byte by byte. So a table
maps each token to its bytes, and Python's incremental UTF-8 decoder turns bytes into text. It delays only an incomplete
character.

The tokenizers library's `DecodeStream` is not used. It delays all text from an invalid byte to the next valid
character, and loses the delayed text at the end of an answer.
"""

import codecs
import json
import re
from functools import cache

from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class Vocabulary:
    """The bytes of every token, none for special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the bytes of all tokens from `tokenizer`.

        Raises:
            FailedPrecondition: reason 'BAD_CHECKPOINT', it is neither byte-level BPE nor made from SentencePiece.
        """
        decoder = json.loads(tokenizer.to_str())["decoder"] or {}
        steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if step}
        if "ByteLevel" in steps:
            to_bytes = _to_bytes
        elif "ByteFallback" in steps:
            to_bytes = _sentencepiece_to_bytes
        else:
            raise FailedPrecondition(
                "The tokenizer is neither byte-level BPE nor made from SentencePiece, the kinds that are supported.",
                reason="BAD_CHECKPOINT",
            )
        # SentencePiece puts a space before every text, and takes it away again.
        self.drops_first_space = steps.get("Strip", {}).get("start", 0) > 0
        specials = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._bytes = {token_id: to_bytes(token) for token, token_id in vocabulary.items() if token_id not in specials}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token, none if unknown."""
        return self._bytes.get(token_id, b"")


class Detokenizer:
    """Decodes one answer incrementally.

    The concatenated pieces equal the text of decoding all tokens at once.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = vocabulary.drops_first_space  # until the first character

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes."""
        text = self._utf8.decode(self._vocabulary.bytes_of(token_id))
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text

    def finish(self) -> str:
        """Return U+FFFD if the answer ended inside a character."""
        return self._utf8.decode(b"", final=True)


def _to_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level spelling.

    Added tokens may be spelled in plain text.
    """
    spelling = _byte_of_character()
    try:
        return bytes(spelling[character] for character in token)
    except KeyError:
        return token.encode()


def _sentencepiece_to_bytes(token: str) -> bytes:
    """Return the bytes of a SentencePiece spelling."""
    if byte := _BYTE_PIECE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte of each character of a byte-level spelling.

    The table is GPT-2's: printable Latin-1 represents itself, and U+0100 and up represent the other bytes in order
    (github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}
