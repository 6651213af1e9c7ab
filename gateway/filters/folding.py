"""Fold text for comparison, with a map to its source.

Folding ignores case and invisible characters, and normalizes to NFKC. So full-width letters, ligatures and composed
accents equal their plain forms, and a zero-width space within a word has no effect.

Text is folded cluster by cluster. A cluster is a character with the marks and invisible characters after it. Its folded
form depends on no other cluster. Marks beyond a length that no language reaches begin a new cluster, so that no cluster
grows without end.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

# Hangul vowels and final consonants, which compose with the characters before them.
_HANGUL_FOLLOWERS = range(0x1160, 0x1200)
_CACHED_CHARACTERS = 8192
_MAX_CLUSTER = 32  # characters, as in Unicode's stream-safe text format (UAX 15)
# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt). NFKC_Casefold removes the same characters.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def fold(text: str) -> str:
    """Return the folded form of `text`."""
    visible = _INVISIBLE.sub("", text)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())


@lru_cache(_CACHED_CHARACTERS)
def begins_cluster(character: str) -> bool:
    """Return whether a character cannot combine with the one before."""
    first = base_character(character)
    return not (is_mark(first) or ord(first) in _HANGUL_FOLLOWERS or _INVISIBLE.match(character))


@lru_cache(_CACHED_CHARACTERS)
def base_character(character: str) -> str:
    """Return a character without its marks.

    A Hangul syllable is reduced to its first consonant.
    """
    return unicodedata.normalize("NFKD", character)[0]


def is_mark(character: str) -> bool:
    """Return whether a character is a combining mark."""
    return unicodedata.category(character).startswith("M")


class FoldedText:
    """A text with its folded form.

    Attributes:
        source: the text.
        folded: its folded form.
        source_spans: for each folded character, the (begin, end) of its cluster in `source`.
        last_cluster: index in `folded` at which the last visible cluster begins.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        begins: list[int] = []
        for index, character in enumerate(source):
            if index == 0 or begins_cluster(character) or index - begins[-1] == _MAX_CLUSTER:
                begins.append(index)
        pieces: list[str] = []
        self.source_spans: list[tuple[int, int]] = []
        self.last_cluster = 0
        for begin, end in pairwise([*begins, len(source)]):
            pieces.append(fold(source[begin:end]))
            if pieces[-1]:
                self.last_cluster = len(self.source_spans)
            self.source_spans += [(begin, end)] * len(pieces[-1])
        self.folded = "".join(pieces)

    def folded_before(self, cut: int) -> str:
        """Return the folded clusters that begin before `source[cut]`."""
        return self.folded[: sum(begin < cut for begin, _ in self.source_spans)]
