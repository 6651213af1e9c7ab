"""Text as it is compared: NFKC, without case and invisible characters, with the way back to what it came from.

Full-width letters, ligatures and composed accents are then what they look like, and a zero-width space amid a word is
nothing. Folding goes cluster by cluster, a character with the marks and the invisible ones that follow it: nothing that
is folded depends on what stands in another cluster.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

# Vowels and final consonants that Hangul composes with what stands before them.
_HANGUL_FOLLOWERS = range(0x1160, 0x1200)
_CACHED_CHARACTERS = 8192
# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), which NFKC_Casefold leaves out as we do.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def fold(text: str) -> str:
    """Return what is compared in place of `text`."""
    visible = _INVISIBLE.sub("", text)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())


@lru_cache(_CACHED_CHARACTERS)
def begins_cluster(character: str) -> bool:
    """Return whether a character is on its own, and never becomes one with what stands before it."""
    first = base(character)
    return not (is_mark(first) or ord(first) in _HANGUL_FOLLOWERS or _INVISIBLE.match(character))


@lru_cache(_CACHED_CHARACTERS)
def base(character: str) -> str:
    """Return what remains of a character without its marks, and for Hangul its first consonant."""
    return unicodedata.normalize("NFKD", character)[0]


def is_mark(character: str) -> bool:
    """Return whether a character is an accent, a vowel sign or another mark on the one before it."""
    return unicodedata.category(character).startswith("M")


class Folded:
    """A text with its folded form.

    Attributes:
        raw: the text.
        folded: its folded form.
        origins: for each folded character the (begin, end) of its cluster in `raw`.
        last_begins: where the last cluster begins in `folded`.
    """

    def __init__(self, raw: str) -> None:
        self.raw = raw
        begins = [index for index, character in enumerate(raw) if index == 0 or begins_cluster(character)]
        pieces: list[str] = []
        self.origins: list[tuple[int, int]] = []
        self.last_begins = 0
        for begin, end in pairwise([*begins, len(raw)]):
            self.last_begins = len(self.origins)
            pieces.append(fold(raw[begin:end]))
            self.origins += [(begin, end)] * len(pieces[-1])
        self.folded = "".join(pieces)

    def before(self, cut: int) -> str:
        """Return the folded form of the clusters before `raw[cut]`, where one begins."""
        return self.folded[: sum(begin < cut for begin, _ in self.origins)]
