"""Signs of a sick model in an answer."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answer.signs import SignReader, Signs, digest_of, is_looping, script_of
from processing import ChatMessage
from tandem.v1 import sampling_pb2

STOP, LENGTH = sampling_pb2.FINISH_REASON_STOP, sampling_pb2.FINISH_REASON_LENGTH


def question(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def signs(text: str, asked: str = "What is it?", reason: Any = STOP, step: int = 3) -> Signs:
    """Return the signs of an answer that arrives in pieces."""
    reader = SignReader(script_of(question(asked)), b"q")
    for start in range(0, len(text), step):
        reader.add([ord(character) for character in text[start : start + step]], text[start : start + step])
    return reader.finish(reason)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=32), st.lists(st.integers(0, 9), max_size=50))
def test_an_end_that_repeats_is_a_loop_after_any_start(period: list[int], start: list[int]) -> None:
    assert is_looping([*start, *(period * max(4, 24 // len(period) + 1))])


@given(st.lists(st.integers(0, 3), max_size=128))
def test_a_loop_is_found_exactly_where_a_slow_search_finds_one(token_ids: list[int]) -> None:
    def repeats(period: int) -> bool:
        needed = max(4 * period, 24)
        tail = token_ids[len(token_ids) - needed :]
        return len(token_ids) >= needed and all(tail[i] == tail[i % period] for i in range(needed))

    assert is_looping(token_ids) == any(repeats(period) for period in range(1, 33))


def test_ordinary_text_is_no_loop() -> None:
    rng = random.Random(0)
    assert not is_looping([rng.randrange(1000) for _ in range(128)])
    assert not is_looping([7] * 23)
    assert not is_looping([])
    assert not signs("A red bag on the left, a blue bag in the middle and a red bag on the right.").looped
    assert signs("It is " + "red and " * 20).looped


@pytest.mark.parametrize(
    ("asked", "answer", "is_wrong"),
    [
        ("What is it?", "这是一个红色的真皮包，在左边。", True),
        ("What is it?", "It is a red bag.", False),
        ("这是什么商品？", "It is a red bag.", True),
        ("这是什么商品？", "这是 Tandem 的一个红色的包，在左边。", False),
        ("これは何ですか", "それは赤いバッグです。左にあります。", False),
        ("Что это такое?", "It is a red bag.", True),
        ("包子饺子面条 in English?", "包子是一种有馅的食物，很好吃。", False),  # a mixed question
        ("1 + 1 = ?", "二，就是这样的一个数字呀。", False),  # a question without letters
        ("What is it?", "包。", False),  # too short to tell
        ("How do you say bag?", "A bag is 包 in Chinese.", False),
    ],
)
def test_an_answer_in_another_script_than_its_question_is_noticed(asked: str, answer: str, is_wrong: bool) -> None:
    assert signs(answer, asked).wrong_script is is_wrong


def test_the_reason_of_the_end_is_a_sign() -> None:
    assert signs("It is", reason=LENGTH).cut_off
    assert signs("It is", reason=sampling_pb2.FINISH_REASON_FILTERED).filtered
    assert not signs("It is").cut_off


def test_digests_tell_texts_apart_and_show_nothing_of_them() -> None:
    one, same, other = signs("It is a bag.", step=1), signs("It is a bag.", step=5), signs("It is a hat.")
    assert one.text == same.text != other.text
    assert len(one.text) == 16
    assert signs("Yes").text == b""
    digests = [
        digest_of(question("a"), [b"1"]),
        digest_of(question("a"), [b"2"]),
        digest_of(question("b"), [b"1"]),
        digest_of([*question("a"), *question("a")], [b"1"]),
    ]
    assert len(set(digests)) == 4
    assert digest_of(question("a"), [b"1"]) == digests[0]


def test_length_and_mean_log_probability_are_of_all_tokens() -> None:
    reader = SignReader(None, b"q")
    for first in (-0.5, -1.0):
        chosen = [sampling_pb2.TokenLogprob(logprob=first), sampling_pb2.TokenLogprob(logprob=-1.5)]
        reader.add([1, 2], "ab", [sampling_pb2.PositionLogprobs(chosen=one) for one in chosen])
    found = reader.finish(STOP)
    assert (found.num_tokens, found.mean_logprob) == (4, -1.125)
    assert SignReader(None, b"q").finish(STOP).mean_logprob is None
