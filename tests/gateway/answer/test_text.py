"""Streamed text equals the text decoded at once."""

import codecs

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from checkpoint.tokenizer import byte_tokenizer
from gateway.answer.text import AnswerText
from gateway.filters.word_filter import WordFilter, WordList
from processing.detokenizer import Detokenizer, Vocabulary
from tandem.v1 import gateway_pb2, sampling_pb2


def make_tokenizer() -> Tokenizer:
    """Return a byte tokenizer with two added, ordinary tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("好 的", special=False)])
    return tokenizer


TOKENIZER = make_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
TOKEN_IDS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() + 3), max_size=60)
# Tokens of valid text. Random tokens rarely form a character.
TEXT_TOKEN_IDS = st.text(max_size=20).map(lambda text: TOKENIZER.encode(text, add_special_tokens=False).ids)


def pieces_of(token_ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(VOCABULARY)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


@given(
    st.one_of(
        TOKEN_IDS,
        TEXT_TOKEN_IDS,
        st.tuples(TEXT_TOKEN_IDS, TOKEN_IDS, TEXT_TOKEN_IDS).map(lambda parts: [*parts[0], *parts[1], *parts[2]]),
    )
)
def test_the_joined_pieces_equal_the_text_decoded_at_once(token_ids: list[int]) -> None:
    known = [token_id for token_id in token_ids if token_id < TOKENIZER.get_vocab_size()]
    assert "".join(pieces_of(token_ids)) == TOKENIZER.decode(known, skip_special_tokens=True)


@given(TOKEN_IDS)
def test_only_an_unfinished_character_is_held_back(token_ids: list[int]) -> None:
    detokenizer, encoded, shown = Detokenizer(VOCABULARY), b"", ""
    for token_id in token_ids:
        encoded += VOCABULARY.bytes_of(token_id)
        shown += detokenizer.push(token_id)
        # At most three bytes of one character are pending.
        reference = codecs.getincrementaldecoder("utf-8")("replace")
        assert shown == reference.decode(encoded)
        assert len(reference.getstate()[0]) <= 3


@given(st.text(min_size=1, max_size=30))
def test_no_piece_of_valid_text_has_a_replacement_character(text: str) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces_of(token_ids))


def test_invalid_bytes_do_not_hold_text_back() -> None:
    """A decoder that waits for valid UTF-8 would stall."""
    bad = next(token_id for token_id in range(300) if VOCABULARY.bytes_of(token_id) == b"\xff")
    assert pieces_of([bad, bad, bad])[:3] == ["\ufffd"] * 3


def logprobs_of(token_ids: list[int]) -> list[sampling_pb2.PositionLogprobs]:
    chosen = [sampling_pb2.TokenLogprob(token_id=token_id, logprob=-1) for token_id in token_ids]
    return [sampling_pb2.PositionLogprobs(chosen=one) for one in chosen]


def answer(token_ids: list[int], stops: list[str]) -> tuple[list[gateway_pb2.TextDelta], AnswerText]:
    text = AnswerText(VOCABULARY, stops)
    deltas: list[gateway_pb2.TextDelta | None] = []
    for token_id in token_ids:
        deltas.append(text.push([token_id], logprobs_of([token_id])))
        if text.ended_by is not None:
            break
    deltas.append(text.finish())
    return [delta for delta in deltas if delta is not None], text


@given(st.one_of(TOKEN_IDS, TEXT_TOKEN_IDS), st.lists(st.text("ab的", min_size=1, max_size=3), max_size=3))
def test_every_visible_token_has_its_logprobs_once_and_in_order(token_ids: list[int], stops: list[str]) -> None:
    deltas, text = answer(token_ids, stops)
    reported = [entry.chosen.token_id for delta in deltas for entry in delta.logprobs]
    assert reported == token_ids[: len(reported)]
    assert text.ended_by or len(reported) == len(token_ids)


def test_tokens_with_logprobs_have_their_bytes() -> None:
    """A client has no vocabulary to look them up in."""
    first, second = TOKENIZER.encode("好", add_special_tokens=False).ids[:2]
    position = logprobs_of([first])[0]
    position.top.add(token_id=second, logprob=-2)
    position.top.add(token_id=TOKENIZER.get_vocab_size() + 1, logprob=-3)
    text = AnswerText(VOCABULARY, [])
    deltas = [text.push([first], [position]), text.finish()]
    (entry,) = [entry for delta in deltas if delta is not None for entry in delta.logprobs]
    encoded = "好".encode()
    assert (entry.chosen.token, [one.token for one in entry.top]) == (encoded[:1], [encoded[1:2], b""])


def test_tokens_cut_off_by_a_stop_string_have_no_logprobs() -> None:
    token_ids = TOKENIZER.encode("okSTOPno", add_special_tokens=False).ids
    deltas, text = answer(token_ids, ["STOP"])
    assert "".join(delta.text for delta in deltas) == "ok"
    assert len([entry for delta in deltas for entry in delta.logprobs]) == 2
    assert (text.ended_by, text.num_tokens) == (sampling_pb2.FINISH_REASON_STOP, 6)


def test_stop_strings_wait_for_min_tokens() -> None:
    """As in other engines."""
    token_ids = TOKENIZER.encode("a bag, a bag, a bag.", add_special_tokens=False).ids
    for min_tokens, expected in ((0, "a"), (4, "a"), (5, "a bag, a"), (12, "a bag, a bag, a"), (19, token_ids)):
        text = AnswerText(VOCABULARY, [" bag"], min_tokens=min_tokens)
        deltas = [text.push(token_ids[:7]), text.push(token_ids[7:]) if text.ended_by is None else None, text.finish()]
        shown = "".join(delta.text for delta in deltas if delta is not None)
        assert shown == (expected if isinstance(expected, str) else "a bag, a bag, a bag.")
        assert (text.ended_by is not None) is isinstance(expected, str)


def test_a_token_that_overlaps_a_forbidden_word_has_no_logprobs() -> None:
    """Its leading space is visible, its id reveals the word."""
    token_ids = [*TOKENIZER.encode("ok", add_special_tokens=False).ids, TOKENIZER.get_vocab()["好 的"]]
    text = AnswerText(VOCABULARY, [], WordFilter(WordList({"zh": ["的"]}), "end"))
    deltas = [text.push([token_id], logprobs_of([token_id])) for token_id in token_ids] + [text.finish()]
    assert "".join(delta.text for delta in deltas if delta is not None) == "ok好 "
    assert text.ended_by == sampling_pb2.FINISH_REASON_FILTERED
    reported = [entry.chosen.token_id for delta in deltas if delta is not None for entry in delta.logprobs]
    assert reported == token_ids[:2]


def test_a_character_cut_by_the_end_of_the_answer_becomes_a_replacement_character() -> None:
    token_ids = TOKENIZER.encode("好", add_special_tokens=False).ids
    assert len(token_ids) == 3
    deltas, _ = answer(token_ids[:2], [])
    assert "".join(delta.text for delta in deltas) == "\ufffd"
