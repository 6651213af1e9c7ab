"""The output filter: the same however the text is cut, and never more held back than it takes."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chassis.errors import FailedPrecondition
from gateway.filters.folding import FoldedText, begins_cluster, fold, is_mark
from gateway.filters.word_filter import Action, WordFilter, WordList, read_word_lists

# Letters that fold together, accents composed and not, ligatures, full width, Hangul in pieces, Chinese, spaces, and
# what nobody sees (a soft hyphen, a zero-width space, a variation selector, Hangul's filler); but not U+0345, a mark
# that folds to a letter: every letter would have to be held back for it.
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
    """Push `pieces`; return all that was shown, and whether a word ended it."""
    watcher, shown = WordFilter(WordList({"xx": words}), action), ""
    for piece in pieces:
        shown += watcher.push(piece)
        if watcher.ended:
            return shown, True
    return shown + watcher.finish(), watcher.ended


def found(text: str, words: list[str]) -> list[tuple[int, int]]:
    """Return (end, begin) of every word in the text, by folding every stretch of whole clusters and comparing."""
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
    """Return whether letters with case stand on both sides of a place."""
    if at == len(whole):
        return False
    left = next((letter for letter in reversed(whole[:at]) if not is_mark(letter)), "")
    return has_case(left) and has_case(whole[at])


def has_case(letter: str) -> bool:
    return letter.upper() != letter.lower()


@given(text=TEXTS)
def test_folding_by_cluster_is_folding_the_whole(text: str) -> None:
    folded = FoldedText(text)
    assert folded.folded == fold(text)
    assert len(folded.source_spans) == len(folded.folded)


@given(text=st.text(max_size=12))
def test_folding_by_cluster_is_folding_the_whole_in_every_script(text: str) -> None:
    assert FoldedText(text).folded == fold(text)


@given(pieces=st.lists(TEXTS, max_size=6), words=WORDS)
@example(pieces=["caf", "e", "\u0301"], words=["cafe"])
@example(pieces=["e", "\u0301bad"], words=["bad"])
def test_an_answer_ends_where_a_search_over_the_whole_text_would_end_it(pieces: list[str], words: list[str]) -> None:
    text = "".join(pieces)
    places = found(text, words)
    assert run(pieces, words, "end") == ((text[: places[0][0]], True) if places else (text, False))


@given(pieces=st.lists(TEXTS, max_size=6), words=WORDS)
def test_what_is_masked_is_what_a_search_over_the_whole_text_would_mask(pieces: list[str], words: list[str]) -> None:
    text = "".join(pieces)
    expected = list(text)
    for begin, end in found(text, words):
        expected[begin:end] = "*" * (end - begin)
    assert run(pieces, words, "mask") == ("".join(expected), False)


@given(
    pieces=st.lists(st.text("abc ", max_size=5), max_size=8),
    words=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1),
)
def test_only_what_may_become_a_word_is_held_back(pieces: list[str], words: list[str]) -> None:
    watcher, shown, pushed = WordFilter(WordList({"en": words}), "end"), "", ""
    for piece in pieces:
        shown += watcher.push(piece)
        pushed += piece
        if watcher.ended:
            return
        held = pushed[len(shown) :]
        assert not held or any(word.startswith(held) for word in words)


def test_plain_text_is_not_delayed() -> None:
    watcher = WordFilter(WordList({"en": ["secret"]}), "end")
    text = "The class of the bag is red."
    # An 's' amid a word begins none.
    assert [watcher.push(letter) for letter in text] == list(text)


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
def test_words_are_found_in_any_form_and_letter_by_letter(text: str, shown: str) -> None:
    words = ["bad", "\u574f\u4eba"]
    assert run(list(text), words, "mask")[0] == run([text], words, "mask")[0] == shown


def test_the_list_that_was_hit_is_named() -> None:
    watcher = WordFilter(WordList({"en": ["bad"], "zh": ["\u574f"]}), "mask")
    watcher.push("so bad, ")
    assert watcher.languages == {"en"}


def test_lists_are_read_from_files_named_by_language(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("# a note\nbad\n\nvery bad thing\n")
    (tmp_path / "zh.txt").write_text("\u574f\u4eba\n", encoding="utf-8")
    words = read_word_lists([tmp_path / "en.txt", tmp_path / "zh.txt"])
    assert {language for *_, language in words.find("a very bad thing \u574f\u4eba")} == {"en", "zh"}


def test_a_list_an_editor_began_with_a_byte_order_mark_is_read_from_its_first_line_on(tmp_path: Path) -> None:
    path = tmp_path / "en.txt"
    for content in ("bad\n", "# a note\nbad\n"):
        path.write_text(content, encoding="utf-8-sig")
        assert read_word_lists([path]).prefixes == {"b", "ba", "bad"}


@pytest.mark.parametrize("content", [b"\xff\xfe", "\u0301x".encode(), "\u200b".encode()])
def test_a_bad_list_stops_the_start(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_bytes(content)
    with pytest.raises(FailedPrecondition):
        read_word_lists([tmp_path / "en.txt"])


def test_every_character_that_composes_backwards_is_known_for_one() -> None:
    """Else a word could change under the filter's hands after it was shown."""
    for code in range(0x110000):
        decomposition = unicodedata.decomposition(chr(code))
        if decomposition and not decomposition.startswith("<"):
            parts = [chr(int(part, 16)) for part in decomposition.split()]
            if len(parts) == 2 and unicodedata.normalize("NFC", "".join(parts)) == chr(code):
                assert not begins_cluster(parts[1]), hex(code)
