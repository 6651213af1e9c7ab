"""End or mask answers at forbidden words, even across tokens.

Text is compared in its folded form (see `folding`). A word of cased letters matches only as a whole word, so 'ass' is
not found in 'class'. Scripts without case, such as Chinese, have no spaces between words, so their words match
anywhere. No more text is held back than a match can need. Invisible characters and marks within a word are ignored, up
to a number that bounds the text held back.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ahocorasick_rs import AhoCorasick

from chassis.errors import FailedPrecondition
from gateway.filters.folding import FoldedText, base_character, begins_cluster, fold, is_mark

Action = Literal["end", "mask"]
MASK = "*"

_MAX_IGNORED = 64  # invisible characters and marks within a word, and after it


class WordList:
    """The words of all languages, in one automaton."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        """Compile `words`, given by language.

        Raises:
            FailedPrecondition: reason 'BAD_WORD_LIST', a word is empty or begins with a combining mark, which belongs
                to the character before it.
        """
        language_of: dict[str, str] = {}
        for language, entries in words.items():
            for entry in entries:
                word = fold(entry)
                if not word or not begins_cluster(word[0]):
                    raise FailedPrecondition(
                        f"Remove {entry!a} from the word list {language!r}: "
                        "a word must have visible characters and not begin with a combining mark.",
                        reason="BAD_WORD_LIST",
                    )
                language_of.setdefault(word, language)
        self._languages = list(language_of.values())
        self._automaton = AhoCorasick(list(language_of))
        self.longest_word = max(map(len, language_of), default=0)  # folded characters
        self.longest_source = self.longest_word + _MAX_IGNORED  # characters of a text that are one word
        # All proper prefixes of all words, and the words themselves. Each ends in a base character without marks,
        # because marks may still follow and change it.
        self.prefixes = frozenset(
            word[:length] + base_character(word[length]) for word in language_of for length in range(len(word))
        )

    def find(self, folded: str) -> Iterator[tuple[int, int, str]]:
        """Yield (start, end, language) of every word, overlapping ones too."""
        for index, start, end in self._automaton.find_matches_as_indexes(folded, overlapping=True):
            yield start, end, self._languages[index]


def read_word_lists(paths: Sequence[Path]) -> WordList:
    """Read word lists, named by language, such as 'en.txt'.

    A line is one word or phrase. Empty lines, and lines that begin with '#', are ignored.

    Raises:
        FailedPrecondition: reason 'BAD_WORD_LIST'.
    """
    words: dict[str, list[str]] = {}
    for path in paths:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except OSError as error:
            raise _bad_file(path, f"it cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise _bad_file(path, "it is not UTF-8") from None
        words.setdefault(path.stem, []).extend(line for line in lines if line and not line.startswith("#"))
    return WordList(words)


def _bad_file(path: Path, problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"Fix the word list {path.name!r}: {problem}.", reason="BAD_WORD_LIST", where=path)


class WordFilter:
    """Filters the words of one answer.

    Overlapping words are all masked. Where a word ends the answer, the word that ends first does. Neither depends on
    how the text is cut into pieces.

    Attributes:
        languages: languages whose words were found so far.
        ended: whether a word ended the answer. It takes no more text then.
    """

    def __init__(self, words: WordList, action: Action) -> None:
        """Start a new answer.

        Args:
            words: the words to look for.
            action: end the answer before a word, or mask it.
        """
        self.languages: set[str] = set()
        self.ended = False
        self._words = words
        self._action = action
        self._pending = ""  # text held back, because it may begin a word
        self._num_masked = 0  # leading characters of the pending text that belong to a word found before
        self._last_letter = ""  # the last folded character before the pending text, marks ignored

    def push(self, text: str) -> str:
        """Take the next piece and return the newly visible text."""
        return self._scan(FoldedText(self._pending + text), is_end=False) if text else ""

    def finish(self) -> str:
        """Return the pending text, at the end of the answer."""
        return self._scan(FoldedText(self._pending), is_end=True)

    def _scan(self, text: FoldedText, *, is_end: bool) -> str:
        # A mark may still follow the last cluster and change it, so a match within it does not count yet.
        num_settled = len(text.folded) if is_end else text.last_cluster
        matches = [
            (end, start, language)
            for start, end, language in self._words.find(text.folded)
            if end <= num_settled and self._is_word(text, start, end)
        ]
        if matches and self._action == "end":
            _, start, language = min(matches)
            self.ended = True
            self.languages.add(language)
            return self._emit(text, [], text.source_spans[start][0])
        self.languages.update(language for _, _, language in matches)
        spans = [(text.source_spans[start][0], text.source_spans[end - 1][1]) for end, start, _ in matches]
        return self._emit(text, spans, len(text.source) if is_end else self._first_undecided(text))

    def _emit(self, text: FoldedText, spans: Sequence[tuple[int, int]], cut: int) -> str:
        """Mask and return the text before `cut`.

        The rest stays pending.

        Args:
            text: all pending text.
            spans: (begin, end) in the source of the words to mask.
            cut: characters of the source to return.
        """
        is_masked = [index < self._num_masked for index in range(cut)]
        num_masked = self._num_masked - cut
        for begin, end in spans:
            is_masked[begin:end] = [True] * (min(end, cut) - begin)
            if begin < cut:  # other spans are found again in the pending text
                num_masked = max(num_masked, end - cut)
        self._last_letter = next(
            (letter for letter in reversed(text.folded_before(cut)) if not is_mark(letter)), self._last_letter
        )
        self._pending, self._num_masked = text.source[cut:], max(0, num_masked)
        return "".join(
            MASK if masked else character for character, masked in zip(text.source[:cut], is_masked, strict=True)
        )

    def _first_undecided(self, text: FoldedText) -> int:
        """Return the source index of the first unfinished word.

        A cluster there may begin a word that later text completes. Without one, the result is the source's length.
        """
        last = text.last_cluster
        for start in range(max(0, last - self._words.longest_word), len(text.folded)):
            beginning = text.folded[start:last] + base_character(text.folded[max(start, last)])
            begin, _ = text.source_spans[start]
            if (
                beginning in self._words.prefixes
                and len(text.source) - begin <= self._words.longest_source
                and not self._continues_word(text.folded, start)
            ):
                return begin
        return len(text.source)

    def _is_word(self, text: FoldedText, start: int, end: int) -> bool:
        """Return whether a match counts as a word."""
        if text.source_spans[end - 1][1] - text.source_spans[start][0] > self._words.longest_source:
            return False
        followed = end < len(text.folded) and self._continues_word(text.folded, end)
        return not followed and not self._continues_word(text.folded, start)

    def _continues_word(self, folded: str, at: int) -> bool:
        """Return whether the letter at `at` continues a word.

        It does if it and the letter before it have case. Marks between them are ignored.
        """
        if not _has_case(folded[at]):
            return False
        while at and is_mark(folded[at - 1]):
            at -= 1
        return _has_case(folded[at - 1] if at else self._last_letter)


def _has_case(letter: str) -> bool:
    return letter.lower() != letter.upper()
