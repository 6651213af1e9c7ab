"""Answers under constraints, with and without jump-ahead."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.interface import Engine, Event, Finished, FinishReason, Prefilled, Tokens, Usage
from language_service.sampling import Logprobs
from language_service.sampling.grammar import Grammar, GrammarCompiler
from language_service.sampling.options import Constraint, SamplingOptions
from tests.language_service.asking import count, read
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import CONFIG, make_decoder

VOCAB, EOS = 264, 2
TOKENIZER = byte_tokenizer()
MODEL = make_decoder(CONFIG.model_copy(update={"vocab_size": VOCAB}))
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "reddish", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"type": "boolean"},
    },
    "required": ["colour", "count", "sure"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    Constraint("json_schema", json.dumps(SCHEMA)),
    Constraint("regex", "no choice at all"),
    Constraint("regex", "(ab[0-9]cd){3}(xyz)*!"),
    Constraint("choices", '["yes", "yesterday", "never"]'),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 5},
    "cut-offs": {"temperature": 2.0, "seed": 6, "top_p": 0.9, "top_k": 9, "min_p": 0.01},
    "penalties": {"temperature": 1.0, "seed": 7, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    "bias": {"logit_bias": dict.fromkeys(range(70, 90), -50.0)},
    "logprobs": {"temperature": 1.0, "seed": 5, "num_logprobs": 2},
    "stop tokens": {"stop_token_ids": frozenset(TOKENIZER.encode('c"').ids)},
    "no end before": {"min_tokens": 4, "ignore_eos": True},
}


@dataclass(slots=True)
class Answer:
    """All that a client sees but the times."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    num_prefilled: int = 0  # events
    usage: Usage | None = None
    reason: FinishReason | None = None

    def add(self, event: Event) -> None:
        match event:
            case Prefilled():
                self.num_prefilled += 1
            case Tokens():
                self.token_ids += event.token_ids
                self.logprobs += event.logprobs
            case Finished():
                self.usage, self.reason = event.usage, event.reason


@pytest.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER.to_str(), vocab_size=VOCAB, eos_token_ids=[EOS])
    yield compiler
    compiler.close()


async def ask(engine: Engine, grammar: Grammar | None, prompt: list[int], max_tokens: int, **options: Any) -> Answer:
    generation = engine.open(SamplingOptions(**options), salt=b"", priority=0, grammar=grammar)
    answer = Answer()
    try:
        generation.add_text(prompt)
        generation.end_prompt(max_tokens)
        async for event in generation:
            answer.add(event)
    finally:
        generation.cancel()
        if grammar is not None:
            grammar.close()
    return answer


def assert_equal(answer: Answer, other: Answer) -> None:
    """Logits may differ a little: sums run in another order."""
    assert [one.chosen for one in answer.logprobs] == pytest.approx([one.chosen for one in other.logprobs], abs=1e-4)
    tops = [[[token for token, _ in one.top] for one in each.logprobs] for each in (answer, other)]
    assert tops[0] == tops[1]
    answer.logprobs, other.logprobs = [], []
    assert answer == other


@pytest.mark.parametrize("name", OPTIONS)
async def test_jump_ahead_changes_no_answer(make_engine: MakeEngine, compiler: GrammarCompiler, name: str) -> None:
    """Nor its logprobs, usage and end."""
    jumping = await make_engine(model=MODEL)
    plain = await make_engine(model=MODEL, jump_ahead=False)
    before = count("drafts", outcome="forced")
    for constraint in CONSTRAINTS:
        for max_tokens in (1, 7, 60):
            answers = [
                await ask(engine, await compiler.compile(constraint), [5, 6, 7], max_tokens, **OPTIONS[name])
                for engine in (jumping, plain)
            ]
            assert answers[0].num_prefilled == 1
            assert_equal(*answers)
    assert count("drafts", outcome="forced") > before + 10


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
async def test_jump_ahead_changes_no_answer_under_crowding(
    make_engine: MakeEngine, compiler: GrammarCompiler, options: dict[str, Any]
) -> None:
    """Blocks and budget run out, and sequences are preempted."""
    plain = await make_engine(model=MODEL, jump_ahead=False)
    crowded = await make_engine(model=MODEL, num_blocks=24, max_running=5, max_step_tokens=12)
    before = count("preemptions")
    questions = [(constraint, [5 + number, 6, 7]) for number in range(4) for constraint in [*CONSTRAINTS, None]]

    async def one(engine: Engine, number: int) -> Answer:
        constraint, prompt = questions[number]
        grammar = await compiler.compile(constraint) if constraint else None
        return await ask(engine, grammar, prompt, 40, seed=number, ignore_eos=grammar is None, **options)

    alone = [await one(plain, number) for number in range(len(questions))]
    together = await asyncio.gather(*(one(crowded, number) for number in range(len(questions))))
    for answer, other in zip(together, alone, strict=True):
        assert answer.usage is not None
        assert (answer.token_ids, answer.reason) == (other.token_ids, other.reason)
    assert count("preemptions") > before


async def test_forced_tokens_take_no_steps_of_their_own(make_engine: MakeEngine, compiler: GrammarCompiler) -> None:
    """The step that ends the prompt chooses the first ones."""
    engine = await make_engine(model=MODEL)
    for pattern, expected in (("forced", [6]), ("a[0-9]bcdef[0-9]gh", [2, 6, 2]), ("[0-9]ab[0-9]", [1, 3])):
        grammar = await compiler.compile(Constraint("regex", pattern))
        generation = engine.open(SamplingOptions(), salt=b"", priority=0, grammar=grammar)
        with engine._condition:  # so that one step computes the prompt
            generation.add_text([5, 6, 7])
            generation.end_prompt(60)
        sizes = [len(event.token_ids) async for event in generation if isinstance(event, Tokens)]
        assert sizes == expected  # of each step


async def test_a_constraint_that_forces_more_than_one_frame(make_engine: MakeEngine, compiler: GrammarCompiler) -> None:
    engine = await make_engine(model=MODEL, max_step_tokens=64)
    text = "many words " * 12
    grammar = await compiler.compile(Constraint("choices", json.dumps([text])))
    generation = engine.open(SamplingOptions(), salt=b"", priority=0, grammar=grammar)
    generation.add_text([5, 6, 7])
    generation.end_prompt(200)
    tokens, finished = await read(generation)
    assert TOKENIZER.decode(tokens) == text
    assert finished.reason is FinishReason.STOP
