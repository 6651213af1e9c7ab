"""Stop strings across the borders of pieces."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.answer.stop_strings import StopStringMatcher

# Two letters, so that stop strings overlap with each other and with themselves.
LETTERS = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """Push `pieces`; return all that was shown, and whether a stop string was hit."""
    watcher, shown = StopStringMatcher(stops), ""
    for piece in pieces:
        text, hit = watcher.push(piece)
        shown += text
        if hit:
            return shown, True
    return shown + watcher.finish(), False


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return the same by `str.find` on the whole text."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_pieces_end_where_the_whole_text_would(pieces: list[str], stops: list[str]) -> None:
    assert run(pieces, stops) == expected("".join(pieces), stops)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_only_what_may_become_a_stop_is_held_back(pieces: list[str], stops: list[str]) -> None:
    watcher, shown, pushed = StopStringMatcher(stops), "", ""
    for piece in pieces:
        text, hit = watcher.push(piece)
        if hit:
            return
        shown, pushed = shown + text, pushed + piece
        held = pushed[len(shown) :]
        assert pushed == shown + held
        assert not held or any(stop != held and stop.startswith(held) for stop in stops)


def test_a_false_start_is_released_with_the_character_that_breaks_it() -> None:
    watcher = StopStringMatcher(["\n\nUser:"])
    assert watcher.push("one\n\nUs") == ("one", False)
    assert watcher.push("ed") == ("\n\nUsed", False)


def test_of_two_stops_that_end_together_the_longer_wins() -> None:
    assert run(["x", "ab", "c"], ["bc", "abc"]) == ("x", True)
