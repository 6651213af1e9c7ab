"""N-gram drafts, and answers with and without them."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from language_service.model.decoder import Decoder
from language_service.scheduling.drafts import PromptLookup
from tests.language_service.asking import PROMPTS, Part, ask, count, expected
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import make_image

# Prompts with repetitive answers. A random decoder falls into loops, and some of these start with one.
REPEATING: list[list[Part]] = [
    *PROMPTS,
    [[5, 6, 7, 8, 9] * 4],
    [[11, 12], make_image(1), [13, 14, 15, 13, 14, 15, 13]],
]


def lookup_of(length: int) -> PromptLookup:
    """Return a lookup whose drafts were right so far."""
    lookup = PromptLookup(length)
    for _ in range(length):
        lookup.learn(1, 1)
    return lookup


@given(token_ids=st.lists(st.integers(0, 2), max_size=40), cuts=st.lists(st.integers(0, 40)), limit=st.integers(0, 6))
def test_a_draft_repeats_the_text_after_the_last_equal_ngram(token_ids: list[int], cuts: list[int], limit: int) -> None:
    """Also after earlier drafts of shorter texts."""
    lookup = lookup_of(6)
    for cut in sorted(cut for cut in cuts if cut < len(token_ids)):
        lookup.draft(token_ids[:cut], limit)
    places = [end for end in range(3, len(token_ids)) if token_ids[end - 3 : end] == token_ids[-3:]]
    followed = token_ids[places[-1] :] if places else []
    assert lookup.draft(token_ids, limit) == (followed * 6)[:limit]


def test_the_draft_length_adapts_to_acceptance() -> None:
    lookup = PromptLookup(8)
    tokens = [1, 2, 3] * 3

    def draft_length() -> int:
        return len(lookup.draft(tokens, 100))

    for expected_length in (1, 2, 4, 8, 8):
        assert draft_length() == expected_length
        lookup.learn(expected_length, expected_length)
    lookup.learn(8, 3)
    assert draft_length() == 3


def test_drafts_pause_longer_after_each_rejected_one() -> None:
    """So an answer that does not repeat costs little."""
    lookup = PromptLookup(8)
    tokens = [1, 2, 3] * 3
    drafted = []
    for step in range(300):
        if draft := lookup.draft(tokens, 100):
            lookup.learn(len(draft), 0)
            drafted.append(step)
    assert drafted == [0, 2, 5, 10, 19, 36, 69, 134, 199, 264]
    for _ in range(64):
        assert lookup.draft(tokens, 100) or lookup.draft(tokens, 0) == []  # a step without room for it does not count
    lookup.learn(1, 1)
    assert len(lookup.draft(tokens, 100)) == 2


async def test_greedy_answers_with_drafts_equal_the_reference(make_engine: MakeEngine, decoder: Decoder) -> None:
    """Alone, together, and when blocks run out."""
    for num_blocks in (64, 20):
        engine = await make_engine(num_blocks=num_blocks, max_drafts=6)
        before = count("drafts", outcome="right")
        answers = [expected(decoder, parts, 40) for parts in REPEATING]
        assert [await ask(engine, parts, 40) for parts in REPEATING] == answers
        assert await asyncio.gather(*(ask(engine, parts, 40) for parts in REPEATING)) == answers
        assert count("drafts", outcome="right") > before + 50
    assert count("drafts", outcome="wrong") > 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.3, "seed": 5},
        {"temperature": 0.2, "seed": 6, "top_p": 0.9, "repetition_penalty": 1.1},
        {"frequency_penalty": 0.3},
        {"min_tokens": 30, "logit_bias": {2: 3.0}},
        {"stop_token_ids": frozenset({7, 13})},
        {"temperature": 0.3, "seed": 5, "num_logprobs": 2},
    ],
)
async def test_drafts_change_no_answer_under_any_option(make_engine: MakeEngine, options: dict[str, Any]) -> None:
    """Each token takes one random number, drafted or not."""
    plain, drafting = await make_engine(), await make_engine(max_drafts=6)
    for parts in REPEATING:
        assert await ask(drafting, parts, 40, **options) == await ask(plain, parts, 40, **options)
