"""Compile constraints, and follow them with random logits."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from chassis.errors import InvalidArgument, ResourceExhausted
from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.interface import FinishReason, Generation
from language_service.sampling.grammar import Grammar, GrammarCompiler, allowed_tokens
from language_service.sampling.grammar_pool import GrammarPool
from language_service.sampling.grammar_process import GrammarProcess
from language_service.sampling.options import Constraint, SamplingOptions, read_options
from language_service.sampling.sampler import choose
from language_service.sampling.state import SamplingState
from tandem.v1 import sampling_pb2
from tests.language_service.asking import read
from tests.language_service.conftest import MakeEngine
from tests.language_service.following import settle
from tests.language_service.small import CONFIG, make_decoder

VOCAB, EOS = 264, 2
TOKENIZER: Tokenizer = byte_tokenizer()  # as in small checkpoints
MODEL = make_decoder(CONFIG.model_copy(update={"vocab_size": VOCAB}))
(A,) = TOKENIZER.encode("a").ids

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "grün"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "sure": {"type": "boolean"},
        },
        "required": ["colour", "count", "sure"],
        "additionalProperties": False,
    }
)


def fits_schema(text: str) -> bool:
    answer = json.loads(text)
    return (
        answer.keys() == {"colour", "count", "sure"}
        and answer["colour"] in ("red", "grün")
        and 0 <= answer["count"] <= 99
        and isinstance(answer["sure"], bool)
    )


CASES: dict[str, tuple[Constraint, Callable[[str], Any]]] = {
    "schema": (Constraint("json_schema", SCHEMA), fits_schema),
    "regex": (Constraint("regex", "[0-9]{2,5}(ab|äö)+!"), re.compile("[0-9]{2,5}(ab|äö)+!").fullmatch),
    "grammar": (
        Constraint("grammar", 'start: "<" %json {"enum": [1, "zwei"]} ("," /[0-9]/)* ">"'),
        re.compile('<(1|"zwei")(,[0-9])*>').fullmatch,
    ),
    "choices": (Constraint("choices", '["yes", "no", "not \\"sure\\""]'), {"yes", "no", 'not "sure"'}.__contains__),
}


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER.to_str(), vocab_size=VOCAB, eos_token_ids=[EOS])
    yield compiler
    compiler.close()


def answer(grammars: list[Grammar], logits_seed: int, **options: Any) -> list[str]:
    """Return texts from random logits, one per grammar."""
    generator = torch.Generator().manual_seed(logits_seed)
    states = [SamplingState(SamplingOptions(**options), eos_token_ids=[EOS], grammar=one) for one in grammars]
    tokens: list[list[int]] = [[] for _ in states]
    for _ in range(400):
        settle(grammars)
        active = [row for row, one in enumerate(grammars) if not one.is_complete]
        if not active:
            return [TOKENIZER.decode(row) for row in tokens]
        choices = choose(torch.randn(len(active), VOCAB, generator=generator), [states[row] for row in active])
        for row, choice in zip(active, choices, strict=True):
            assert choice is not None
            assert grammars[row].error is None
            tokens[row].append(choice.token_id)
    raise AssertionError("the answers did not end")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 3, "frequency_penalty": 1.0}])
async def test_answers_fit_their_constraint_for_any_logits(compiler: GrammarCompiler, options: dict[str, Any]) -> None:
    """With several answers and grammars in a batch."""
    for seed in range(5):
        grammars = [await compiler.compile(constraint) for constraint, _ in CASES.values()]
        for text, (_, fits) in zip(answer(grammars, seed, **options), CASES.values(), strict=True):
            assert fits(text), text


async def test_answers_under_one_constraint_have_separate_states(compiler: GrammarCompiler) -> None:
    constraint = Constraint("choices", '["ab", "cd"]')
    first, second = await compiler.compile(constraint), await compiler.compile(constraint)
    first.accept(TOKENIZER.encode("a").ids[0])
    settle([first])
    rows = allowed_tokens([first, second], VOCAB)
    assert [{TOKENIZER.decode([token]) for token in np.flatnonzero(row).tolist()} for row in rows] == [
        {"b"},
        {"a", "c"},
    ]


async def test_a_row_without_a_constraint_is_not_changed(compiler: GrammarCompiler) -> None:
    grammar = await compiler.compile(Constraint("regex", "x"))
    states = [SamplingState(SamplingOptions(), eos_token_ids=[EOS], grammar=one) for one in (None, grammar)]
    logits_BV = torch.zeros(2, VOCAB)
    logits_BV[:, 200] = 5
    assert [choice and choice.token_id for choice in choose(logits_BV, states)] == [200, TOKENIZER.encode("x").ids[0]]
    settle([grammar])
    assert grammar.is_complete


# The search for a text that fits all of them goes through all combinations of their states.
PATTERNS = [{"type": "string", "pattern": f"(a|b)*a(a|b){{{length}}}"} for length in range(1, 40)]

BAD: dict[str, tuple[sampling_pb2.SamplingOptions, str]] = {
    "not JSON": (sampling_pb2.SamplingOptions(json_schema="{"), "json_schema"),
    "no schema": (sampling_pb2.SamplingOptions(json_schema="[1]"), "json_schema"),
    "unknown type": (sampling_pb2.SamplingOptions(json_schema='{"type": 5}'), "json_schema"),
    "elsewhere": (sampling_pb2.SamplingOptions(json_schema='{"$ref": "http://127.0.0.1/x"}'), "json_schema"),
    "nothing fits": (sampling_pb2.SamplingOptions(json_schema='{"enum": []}'), "json_schema"),
    "deep": (sampling_pb2.SamplingOptions(json_schema='{"items":' * 5000 + "{}" + "}" * 5000), "json_schema"),
    "long schema": (sampling_pb2.SamplingOptions(json_schema=" " * 65537), "json_schema"),
    "never compiled": (sampling_pb2.SamplingOptions(json_schema=json.dumps({"allOf": PATTERNS})), "json_schema"),
    "no schema text": (sampling_pb2.SamplingOptions(json_schema=""), "json_schema"),
    "unclosed": (sampling_pb2.SamplingOptions(regex="(a"), "regex"),
    "look-ahead": (sampling_pb2.SamplingOptions(regex="(?=a)b"), "regex"),
    "long regex": (sampling_pb2.SamplingOptions(regex="ä" * 4097), "regex"),
    "no choices": (sampling_pb2.SamplingOptions(choices=sampling_pb2.Choices()), "choices"),
    "an empty choice": (sampling_pb2.SamplingOptions(choices=sampling_pb2.Choices(texts=["a", ""])), "choices"),
    "long choice": (sampling_pb2.SamplingOptions(choices=sampling_pb2.Choices(texts=["a" * 1025])), "choices"),
    "many choices": (sampling_pb2.SamplingOptions(choices=sampling_pb2.Choices(texts=["a"] * 257)), "choices"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_constraint_is_refused_with_its_field(compiler: GrammarCompiler, name: str) -> None:
    message, field = BAD[name]

    async def read_and_compile() -> None:
        constraint = read_options(message, vocab_size=VOCAB).constraint
        assert constraint is not None
        await compiler.compile(constraint)

    with pytest.raises(InvalidArgument) as caught:
        await read_and_compile()
    assert (caught.value.reason, caught.value.field) == ("BAD_CONSTRAINT", f"sampling.{field}")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the grammars that are given to a worker."""
    grammars: list[str] = []
    really_open = GrammarPool.open

    def open_and_note(pool: GrammarPool, grammar: str) -> GrammarProcess:
        grammars.append(grammar)
        return really_open(pool, grammar)

    monkeypatch.setattr(GrammarPool, "open", open_and_note)
    return grammars


def patterns(grammars: list[str]) -> list[str]:
    return [re.findall(r"/(.*)/", grammar)[0] for grammar in grammars]


async def test_a_constraint_is_compiled_once(compiler: GrammarCompiler, opened: list[str]) -> None:
    for _ in range(3):
        for constraint, _ in CASES.values():
            await compiler.compile(constraint)
    assert len(opened) == len(CASES)


async def test_concurrent_equal_constraints_are_compiled_once(compiler: GrammarCompiler, opened: list[str]) -> None:
    """A cancelled caller does not disturb the others.

    A failed compilation is not cached.
    """
    callers = [asyncio.create_task(compiler.compile(Constraint("regex", "ab+"))) for _ in range(4)]
    await asyncio.sleep(0)
    callers.pop(0).cancel()
    grammars = await asyncio.gather(*callers)
    for grammar in grammars[:2]:
        grammar.accept(A)
    settle(grammars)
    assert [int(grammar.mask(VOCAB)[A]) for grammar in grammars] == [0, 0, 1]  # three states
    assert patterns(opened) == ["ab+"]
    for _ in range(2):
        outcomes = await asyncio.gather(
            *(compiler.compile(Constraint("regex", "(a")) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(outcome, InvalidArgument) for outcome in outcomes)
    assert patterns(opened) == ["ab+", "(a", "(a"]


async def occupy(compiler: GrammarCompiler) -> None:
    """Take all places of constraints that compile."""
    while not compiler._quick.locked():
        await compiler._quick.acquire()


async def test_a_constraint_without_callers_is_not_compiled(compiler: GrammarCompiler, opened: list[str]) -> None:
    """Otherwise the remaining callers would wait for it too."""
    await occupy(compiler)
    first, cancelled, last = (asyncio.create_task(compiler.compile(Constraint("regex", text))) for text in "abc")
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    compiler._quick.release()
    await asyncio.gather(first, last)
    assert patterns(opened) == ["a", "c"]


async def test_constraints_in_flight_are_limited(compiler: GrammarCompiler) -> None:
    await occupy(compiler)
    callers = [asyncio.create_task(compiler.compile(Constraint("regex", f"a{number}"))) for number in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await compiler.compile(Constraint("regex", "b"))
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 1)
    callers.append(asyncio.create_task(compiler.compile(Constraint("regex", "a0"))))  # already in flight
    await asyncio.sleep(0)
    compiler._quick.release()
    assert len(await asyncio.gather(*callers)) == 33
    await compiler.compile(Constraint("regex", "b"))


async def test_the_engine_ends_an_answer_that_is_complete(make_engine: MakeEngine, compiler: GrammarCompiler) -> None:
    """Also with `ignore_eos`, and in a batch with unconstrained answers."""
    engine = await make_engine(model=MODEL)

    async def ask(pattern: str | None) -> tuple[str, FinishReason]:
        grammar = None if pattern is None else await compiler.compile(Constraint("regex", pattern))
        generation = engine.open(SamplingOptions(ignore_eos=True), salt=b"", priority=0, grammar=grammar)
        generation.add_text([5, 6, 7])
        generation.end_prompt(12)
        tokens, finished = await read(generation)
        return TOKENIZER.decode(tokens), finished.reason

    free, short, long = await asyncio.gather(ask(None), ask("[0-9]{4}"), ask("[0-9]{20}"))
    assert short[1] == FinishReason.STOP
    assert re.fullmatch("[0-9]{4}", short[0])
    assert long[1] == FinishReason.LENGTH
    assert re.fullmatch("[0-9]{12}", long[0])
    assert free[1] == FinishReason.LENGTH
    assert free == await ask(None)


async def test_a_constraint_that_becomes_too_complex_is_the_clients_error(
    make_engine: MakeEngine, compiler: GrammarCompiler
) -> None:
    """Otherwise one client could make a release look broken."""
    engine = await make_engine(model=MODEL)
    grammar = await compiler.compile(Constraint("regex", "((a{0,100}){0,100}){0,100}b"))
    generation = engine.open(SamplingOptions(logit_bias={A: 100.0}), salt=b"", priority=0, grammar=grammar)
    generation.add_text([5, 6, 7])
    generation.end_prompt(100)
    with pytest.raises(InvalidArgument, match="too many expressions") as caught:
        await read(generation)
    assert caught.value.reason == "CONSTRAINT_FAILED"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_without_allowed_tokens_fails_alone(
    make_engine: MakeEngine, compiler: GrammarCompiler, temperature: float
) -> None:
    """Its grammar allows only end-of-sequence, which min_tokens forbids."""
    engine = await make_engine(model=MODEL)

    def ask(grammar: Grammar | None) -> Generation:
        options = SamplingOptions(min_tokens=1, temperature=temperature)
        generation = engine.open(options, salt=b"", priority=0, grammar=grammar)
        generation.add_text([5, 6, 7])
        generation.end_prompt(12)
        return generation

    grammar = await compiler.compile(Constraint("regex", "(|)"))
    with engine._condition:  # so that both are in one step
        failing, neighbour = ask(grammar), ask(None)
    with pytest.raises(InvalidArgument) as caught:
        await read(failing)
    assert caught.value.reason == "CONSTRAINT_FAILED"
    assert len((await read(neighbour))[0]) > 0
