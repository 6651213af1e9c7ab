"""Word filter: independent of cuts, without needless delay."""

import time
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chassis.errors import FailedPrecondition
from gateway.filters.folding import FoldedText, begins_cluster, fold, is_mark
from gateway.filters.word_filter import Action, WordFilter, WordList, read_word_lists

# Letters that fold together, composed and separate accents, ligatures, full-width letters, parts of Hangul syllables,
# Chinese, spaces, and invisible characters (soft hyphen, zero-width space, variation selector, Hangul filler).
# Without U+0345, a mark that folds to a letter: the filter would have to hold back every letter for it.
ALPHABET = (
    "abAB\uff41 .e\u00e9\u00c9\u0301\u0323\ufb01fi\ufb03\u00df\u0130\u03b1"
    "\u4e2d\u56fd\u337f\u682a\u1100\u1161\u11a8\uac00\uac01"
    "\u00ad\u200b\ufe0f\u3164"
)
TEXTS = st.text(ALPHABET, max_size=24)
WORDS = st.lists(
    st.text(ALPHABET, min_size=1, max_size=4).filter(lambda word: bool(fold(word)) and begins_cluster(fold(word)[0])),
    min_size=1,
    max_size=4,
)


def run(pieces: list[str], words: list[str], action: Action) -> tuple[str, bool]:
    """Return the visible text, and whether a word ended it."""
    word_filter, shown = WordFilter(WordList({"xx": words}), action), ""
    for piece in pieces:
        shown += word_filter.push(piece)
        if word_filter.ended:
            return shown, True
    return shown + word_filter.finish(), word_filter.ended


def find_words(text: str, words: list[str]) -> list[tuple[int, int]]:
    """Return the (begin, end) of every word, by slow search."""
    bounds = [index for index in range(len(text)) if index == 0 or begins_cluster(text[index])] + [len(text)]
    lengths = [len(fold(text[:bound])) for bound in bounds]
    whole, places = fold(text), []
    for word in map(fold, words):
        for start in range(len(whole) - len(word) + 1):
            end = start + len(word)
            if whole[start:end] == word and not joined(whole, start) and not joined(whole, end):
                first = max(index for index, length in enumerate(lengths) if length <= start)
                last = min(index for index, length in enumerate(lengths) if length >= end)
                places.append((end, start, bounds[first], bounds[last]))
    return [(begin, stop) for _, _, begin, stop in sorted(places)]


def joined(whole: str, at: int) -> bool:
    """Return whether cased letters are on both sides of `at`."""
    if at == len(whole):
        return False
    left = next((letter for letter in reversed(whole[:at]) if not is_mark(letter)), "")
    return has_case(left) and has_case(whole[at])


def has_case(letter: str) -> bool:
    return letter.upper() != letter.lower()


@given(text=TEXTS)
def test_folding_by_cluster_equals_folding_the_whole_text(text: str) -> None:
    folded = FoldedText(text)
    assert folded.folded == fold(text)
    assert len(folded.source_spans) == len(folded.folded)


@given(text=st.text(max_size=12))
def test_folding_by_cluster_equals_folding_the_whole_text_in_every_script(text: str) -> None:
    assert FoldedText(text).folded == fold(text)


@given(pieces=st.lists(TEXTS, max_size=6), words=WORDS)
@example(pieces=["caf", "e", "\u0301"], words=["cafe"])
@example(pieces=["e", "\u0301bad"], words=["bad"])
def test_an_answer_ends_at_the_first_word_of_the_whole_text(pieces: list[str], words: list[str]) -> None:
    text = "".join(pieces)
    places = find_words(text, words)
    assert run(pieces, words, "end") == ((text[: places[0][0]], True) if places else (text, False))


@given(pieces=st.lists(TEXTS, max_size=6), words=WORDS)
def test_every_word_of_the_whole_text_is_masked(pieces: list[str], words: list[str]) -> None:
    text = "".join(pieces)
    expected = list(text)
    for begin, end in find_words(text, words):
        expected[begin:end] = "*" * (end - begin)
    assert run(pieces, words, "mask") == ("".join(expected), False)


@given(
    pieces=st.lists(st.text("abc ", max_size=5), max_size=8),
    words=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1),
)
def test_only_a_possible_beginning_of_a_word_is_held_back(pieces: list[str], words: list[str]) -> None:
    word_filter, shown, pushed = WordFilter(WordList({"en": words}), "end"), "", ""
    for piece in pieces:
        shown += word_filter.push(piece)
        pushed += piece
        if word_filter.ended:
            return
        pending = pushed[len(shown) :]
        assert not pending or any(word.startswith(pending) for word in words)


# Runs of letters, marks and invisible characters, most longer than a cluster or the text of a word.
RUNS = st.lists(
    st.tuples(st.sampled_from("abB \u0301\u0323\u200b\u1161\u4e2d"), st.sampled_from([1, 1, 1, 2, 31, 33, 64, 80])),
    max_size=8,
).map(lambda runs: "".join(letter * length for letter, length in runs))


@given(text=RUNS, cuts=st.lists(st.integers(0, 400), max_size=8))
@example(text="ba" + "\u200b" * 63 + "b", cuts=[])
@example(text="ba" + "\u200b" * 80 + "b b\u200bab", cuts=[70])
def test_long_runs_of_marks_give_the_same_text_for_all_cuts(text: str, cuts: list[int]) -> None:
    words = ["bab", "b", "\u4e2d\u4e2d", "a b"]
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in pairwise(bounds)]
    for action in get_args(Action):
        assert run(list(text), words, action) == run(pieces, words, action) == run([text], words, action)


@pytest.mark.parametrize("follower", ["\u0301", "\u200b", "\u1161"])
def test_marks_without_end_neither_hold_text_back_nor_take_long(follower: str) -> None:
    """The work does not grow with earlier marks."""
    word_filter = WordFilter(WordList({"en": ["bad", "b"]}), "mask")
    word_filter.push("a ba")
    shown, started_s = 4, time.process_time()
    for number in range(10_000):
        shown += len(word_filter.push(follower))
        assert 4 + number + 1 - shown <= 128
    assert time.process_time() - started_s < 2  # 10 s and more where it grows


def test_text_without_a_beginning_of_a_word_is_not_delayed() -> None:
    word_filter = WordFilter(WordList({"en": ["secret"]}), "end")
    text = "The class of the bag is red."
    # An 's' within a word cannot begin 'secret'.
    assert [word_filter.push(letter) for letter in text] == list(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a BAD thing", "a *** thing"),
        ("a \uff22\uff41\uff44 thing", "a *** thing"),
        ("badly, not bad", "badly, not ***"),
        ("\u8fd9\u662f\u574f\u4eba\u5417", "\u8fd9\u662f**\u5417"),
        ("bad", "***"),
        ("ba\u0301d", "ba\u0301d"),
        ("very bad-tempered", "very ***-tempered"),
        ("a b\u200ba\u00add thing", "a ***** thing"),
        ("\ufeffb\ufe0f\u2060ad", "\ufeff*****"),
        ("bad\u200dly", "bad\u200dly"),
    ],
)
def test_words_are_found_in_every_form_at_once_and_letter_by_letter(text: str, shown: str) -> None:
    words = ["bad", "\u574f\u4eba"]
    assert run(list(text), words, "mask")[0] == run([text], words, "mask")[0] == shown


def test_the_language_of_a_found_word_is_recorded() -> None:
    word_filter = WordFilter(WordList({"en": ["bad"], "zh": ["\u574f"]}), "mask")
    word_filter.push("so bad, ")
    assert word_filter.languages == {"en"}


def test_word_lists_are_files_named_by_language(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("# a note\nbad\n\nvery bad thing\n")
    (tmp_path / "zh.txt").write_text("\u574f\u4eba\n", encoding="utf-8")
    words = read_word_lists([tmp_path / "en.txt", tmp_path / "zh.txt"])
    assert {language for *_, language in words.find("a very bad thing \u574f\u4eba")} == {"en", "zh"}


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "en.txt"
    for content in ("bad\n", "# a note\nbad\n"):
        path.write_text(content, encoding="utf-8-sig")
        assert read_word_lists([path]).prefixes == {"b", "ba", "bad"}


@pytest.mark.parametrize("content", [b"\xff\xfe", "\u0301x".encode(), "\u200b".encode()])
def test_an_invalid_word_list_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_bytes(content)
    with pytest.raises(FailedPrecondition):
        read_word_lists([tmp_path / "en.txt"])


def test_no_character_that_composes_with_the_one_before_begins_a_cluster() -> None:
    """Otherwise a character could change after it was shown."""
    for code in range(0x110000):
        decomposition = unicodedata.decomposition(chr(code))
        if decomposition and not decomposition.startswith("<"):
            parts = [chr(int(part, 16)) for part in decomposition.split()]
            if len(parts) == 2 and unicodedata.normalize("NFC", "".join(parts)) == chr(code):
                assert not begins_cluster(parts[1]), hex(code)
