"""N-gram drafts, and answers with and without them."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.tokenizer import byte_tokenizer
from language_service.model.decoder import Decoder
from language_service.sampling.grammar import GrammarCompiler
from language_service.sampling.options import Constraint, SamplingOptions
from language_service.scheduling.drafts import PromptLookup
from tests.language_service.asking import PROMPTS, Part, ask, count, expected, read
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import CONFIG, make_decoder, make_image

# Prompts with repetitive answers. A random decoder falls into loops, and some of these start with one.
REPEATING: list[list[Part]] = [
    *PROMPTS,
    [[5, 6, 7, 8, 9] * 4],
    [[11, 12], make_image(1), [13, 14, 15, 13, 14, 15, 13]],
]


@given(token_ids=st.lists(st.integers(0, 2), max_size=40), cuts=st.lists(st.integers(0, 40)), limit=st.integers(0, 6))
def test_a_draft_repeats_the_text_after_the_last_equal_ngram(token_ids: list[int], cuts: list[int], limit: int) -> None:
    """Also after earlier drafts of shorter texts."""
    lookup = PromptLookup(6)
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

    assert draft_length() == 8
    lookup.learn(8, 0)
    assert draft_length() == 1
    for expected_length in (2, 4, 8, 8):
        lookup.learn(1, 1)
        assert draft_length() == expected_length
    lookup.learn(8, 3)
    assert draft_length() == 3


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


async def test_grammars_accept_drafts(make_engine: MakeEngine) -> None:
    model = make_decoder(CONFIG.model_copy(update={"vocab_size": 264}))
    plain, drafting = await make_engine(model=model), await make_engine(model=model, max_drafts=6)
    compiler = GrammarCompiler(byte_tokenizer().to_str(), vocab_size=264, eos_token_ids=[2])
    before = count("drafts", outcome="right")
    answers = []
    for engine in (plain, drafting):
        grammar = await compiler.compile(Constraint("regex", "(abcab){6}[0-9]+(xyz)*!"))
        generation = engine.open(SamplingOptions(), salt=b"", priority=0, grammar=grammar)
        generation.add_text([5, 6, 7])
        generation.end_prompt(60)
        answers.append((await read(generation))[0])
    assert answers[0] == answers[1]
    assert count("drafts", outcome="right") > before + 10
    compiler.close()
