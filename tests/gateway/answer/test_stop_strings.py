"""Stop strings that cross the borders of pieces."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.answer.stop_strings import StopStringMatcher

# Two letters only, so that stop strings overlap each other and themselves.
LETTERS = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """Return the visible text, and whether a stop was hit."""
    matcher, shown = StopStringMatcher(stops), ""
    for piece in pieces:
        text, hit = matcher.push(piece)
        shown += text
        if hit:
            return shown, True
    return shown + matcher.finish(), False


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return the same result by `str.find` on the whole text."""
    matches = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(matches)[1]], True) if matches else (text, False)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_pieces_end_at_the_same_stop_string_as_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    assert run(pieces, stops) == expected("".join(pieces), stops)


@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
def test_only_a_possible_beginning_of_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    matcher, shown, pushed = StopStringMatcher(stops), "", ""
    for piece in pieces:
        text, hit = matcher.push(piece)
        if hit:
            return
        shown, pushed = shown + text, pushed + piece
        pending = pushed[len(shown) :]
        assert pushed == shown + pending
        assert not pending or any(stop != pending and stop.startswith(pending) for stop in stops)


def test_a_partial_match_is_shown_with_the_character_that_breaks_it() -> None:
    matcher = StopStringMatcher(["\n\nUser:"])
    assert matcher.push("one\n\nUs") == ("one", False)
    assert matcher.push("ed") == ("\n\nUsed", False)


def test_the_longer_of_two_stop_strings_that_end_together_wins() -> None:
    assert run(["x", "ab", "c"], ["bc", "abc"]) == ("x", True)


@given(first=LETTERS, cut=st.integers(0, 40), rest=st.lists(LETTERS, max_size=6), stops=STOPS)
def test_a_stop_string_that_ends_too_early_does_not_count(
    first: str, cut: int, rest: list[str], stops: list[str]
) -> None:
    """But one may begin early and end later."""
    matcher = StopStringMatcher(stops)
    shown = "".join(matcher.push(piece, may_end=False)[0] for piece in (first[:cut], first[cut:]))
    hit = False
    for piece in rest:
        text, hit = matcher.push(piece)
        shown += text
        if hit:
            break
    whole = first + "".join(rest)
    ends = {
        (start + len(stop), start)
        for stop in stops
        for start in range(len(whole))
        if whole.startswith(stop, start) and start + len(stop) > len(first)
    }
    assert (shown if hit else shown + matcher.finish(), hit) == (
        (whole[: min(ends)[1]], True) if ends else (whole, False)
    )
