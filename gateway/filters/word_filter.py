"""Words an answer must not hold, found however tokens and capitals cut them; as little as possible is held back.

Text is compared folded (see `folding`). A word of letters that have capitals counts only where it stands alone, so
'ass' is not found in 'class'; scripts without capitals, such as Chinese, put no spaces between words.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ahocorasick_rs import AhoCorasick

from chassis.errors import FailedPrecondition
from gateway.filters.folding import Folded, base, begins_cluster, fold, is_mark

Action = Literal["end", "mask"]
MASK = "*"


class WordList:
    """All words of all languages in one automaton; shared by all answers."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        """Compile `words`, by language.

        Raises:
            FailedPrecondition: reason 'BAD_WORD_LIST'; a word is empty or begins with a mark, which has no place of
                its own in a text.
        """
        language_of: dict[str, str] = {}
        for language, entries in words.items():
            for entry in entries:
                word = fold(entry)
                if not word or not begins_cluster(word[0]):
                    raise _bad(f"The word list {language!r} has an entry that is empty or begins with a mark.")
                language_of.setdefault(word, language)
        self._languages = list(language_of.values())
        self._automaton = AhoCorasick(list(language_of))
        self.longest = max(map(len, language_of), default=0)  # folded characters
        # Every way a word can have begun, its last character by its base: marks may still follow and change it.
        self.beginnings = frozenset(
            word[:length] + base(word[length]) for word in language_of for length in range(len(word))
        )

    def find(self, folded: str) -> Iterator[tuple[int, int, str]]:
        """Yield (start, end, language) of every word in a folded text, those that overlap others, too."""
        for index, start, end in self._automaton.find_matches_as_indexes(folded, overlapping=True):
            yield start, end, self._languages[index]


def read_word_lists(paths: Sequence[Path]) -> WordList:
    """Read one word or phrase a line; a file is named by its language: 'en.txt'. Lines that begin with '#' are notes.

    Raises:
        FailedPrecondition: reason 'BAD_WORD_LIST'.
    """
    words: dict[str, list[str]] = {}
    for path in paths:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError):
            raise _bad(f"The word list {path.name!r} cannot be read as UTF-8.") from None
        words.setdefault(path.stem, []).extend(line for line in lines if line and not line.startswith("#"))
    return WordList(words)


class WordFilter:
    """Watches one answer.

    Words that overlap are all masked; where one ends the answer, it is the one whose end comes first. Neither depends
    on how the text is cut into pieces.

    Attributes:
        languages: the lists whose words were found so far.
        ended: whether a word ended the answer; it takes no more text then.
    """

    def __init__(self, words: WordList, action: Action) -> None:
        """Watch for `words`; `action` says whether one ends the answer before itself or is masked."""
        self.languages: set[str] = set()
        self.ended = False
        self._words = words
        self._action = action
        self._held = ""
        self._num_masked = 0  # characters at the start of what is held that belong to a word that began before
        self._left = ""  # the last folded character before what is held, marks aside

    def push(self, text: str) -> str:
        """Take the next piece; return what may be shown now."""
        return self._scan(Folded(self._held + text), is_end=False) if text else ""

    def finish(self) -> str:
        """Return what was held back; nothing follows."""
        return self._scan(Folded(self._held), is_end=True)

    def _scan(self, text: Folded, *, is_end: bool) -> str:
        # A mark may still follow the last cluster and make it another character.
        num_settled = len(text.folded) if is_end else text.last_begins
        found = [
            (end, start, language)
            for start, end, language in self._words.find(text.folded)
            if end <= num_settled and self._stands_alone(text.folded, start, end)
        ]
        if found and self._action == "end":
            _, start, language = min(found)
            self.ended = True
            self.languages.add(language)
            return self._release(text, [], text.origins[start][0])
        self.languages.update(language for _, _, language in found)
        words = [(text.origins[start][0], text.origins[end - 1][1]) for end, start, _ in found]
        return self._release(text, words, len(text.raw) if is_end else self._first_undecided(text))

    def _release(self, text: Folded, words: Sequence[tuple[int, int]], cut: int) -> str:
        """Return the first `cut` characters with the words among them masked, and hold the rest."""
        masked = [index < self._num_masked for index in range(cut)]
        num_masked = self._num_masked - cut
        for begin, end in words:
            masked[begin:end] = [True] * (min(end, cut) - begin)
            if begin < cut:  # else it is found again with what is held
                num_masked = max(num_masked, end - cut)
        self._left = next((letter for letter in reversed(text.before(cut)) if not is_mark(letter)), self._left)
        self._held, self._num_masked = text.raw[cut:], max(0, num_masked)
        return "".join(MASK if hidden else character for character, hidden in zip(text.raw[:cut], masked, strict=True))

    def _first_undecided(self, text: Folded) -> int:
        """Return where the first cluster stands with which a word may have begun that is not complete."""
        last = text.last_begins
        for start in range(max(0, last - self._words.longest), len(text.folded)):
            beginning = text.folded[start:last] + base(text.folded[max(start, last)])
            if beginning in self._words.beginnings and not self._joins(text.folded, start):
                return text.origins[start][0]
        return len(text.raw)

    def _stands_alone(self, folded: str, start: int, end: int) -> bool:
        return not self._joins(folded, start) and not (end < len(folded) and self._joins(folded, end))

    def _joins(self, folded: str, at: int) -> bool:
        """Return whether the letter there goes on with a word that began before it; marks belong to what they mark."""
        if not _has_case(folded[at]):
            return False
        while at and is_mark(folded[at - 1]):
            at -= 1
        return _has_case(folded[at - 1] if at else self._left)


def _has_case(letter: str) -> bool:
    return letter.lower() != letter.upper()


def _bad(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_WORD_LIST")
