"""Constraints, compiled for the byte-level tokenizer of small checkpoints, and followed by random logits."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer

from chassis.errors import InvalidArgument, ResourceExhausted
from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.interface import FinishReason, Generation
from language_service.sampling.grammar import Grammar, GrammarCompiler, allowed_tokens
from language_service.sampling.options import Constraint, SamplingOptions, read_options
from language_service.sampling.sampler import SamplingState, choose
from tandem.v1 import sampling_pb2
from tests.language_service.asking import read, until
from tests.language_service.conftest import MakeEngine
from tests.language_service.small import CONFIG, make_decoder

VOCAB, EOS = 264, 2
TOKENIZER: Tokenizer = byte_tokenizer()
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
    "choices": (Constraint("choices", '["yes", "no", "not \\"sure\\""]'), {"yes", "no", 'not "sure"'}.__contains__),
}


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER.to_str(), vocab_size=VOCAB, eos_token_ids=[EOS])
    yield compiler
    compiler.close()


def answer(grammars: list[Grammar], logits_seed: int, **options: Any) -> list[str]:
    """Return the texts that random logits give, one for each grammar, chosen side by side."""
    generator = torch.Generator().manual_seed(logits_seed)
    states = [SamplingState(SamplingOptions(**options), eos_token_ids=[EOS], grammar=one) for one in grammars]
    tokens: list[list[int]] = [[] for _ in states]
    for _ in range(400):
        going = [row for row, one in enumerate(grammars) if not one.is_complete]
        if not going:
            return [TOKENIZER.decode(row) for row in tokens]
        choices = choose(torch.randn(len(going), VOCAB, generator=generator), [states[row] for row in going])
        for row, choice in zip(going, choices, strict=True):
            assert choice is not None
            assert grammars[row].problem is None
            tokens[row].append(choice.token_id)
    raise AssertionError("the answers did not end")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 3, "frequency_penalty": 1.0}])
async def test_whatever_the_logits_are_the_answer_fits(compiler: GrammarCompiler, options: dict[str, Any]) -> None:
    """Several at a time, each with a grammar of its own."""
    for seed in range(5):
        grammars = [await compiler.compile(constraint) for constraint, _ in CASES.values()]
        for text, (_, fits) in zip(answer(grammars, seed, **options), CASES.values(), strict=True):
            assert fits(text), text


async def test_answers_under_one_constraint_are_followed_apart(compiler: GrammarCompiler) -> None:
    constraint = Constraint("choices", '["ab", "cd"]')
    first, second = await compiler.compile(constraint), await compiler.compile(constraint)
    first.accept(TOKENIZER.encode("a").ids[0])
    rows = allowed_tokens([first, second], VOCAB)
    assert [{TOKENIZER.decode([token]) for token in np.flatnonzero(row).tolist()} for row in rows] == [
        {"b"},
        {"a", "c"},
    ]


async def test_one_row_without_a_constraint_is_left_alone(compiler: GrammarCompiler) -> None:
    grammar = await compiler.compile(Constraint("regex", "x"))
    states = [SamplingState(SamplingOptions(), eos_token_ids=[EOS], grammar=one) for one in (None, grammar)]
    logits_BV = torch.zeros(2, VOCAB)
    logits_BV[:, 200] = 5
    assert [choice and choice.token_id for choice in choose(logits_BV, states)] == [200, TOKENIZER.encode("x").ids[0]]
    assert grammar.is_complete


# A text that fits them all is looked for among all combinations of where each of them may stand.
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
async def test_what_cannot_be_followed_is_refused_by_name(compiler: GrammarCompiler, name: str) -> None:
    message, field = BAD[name]

    async def read_and_compile() -> None:
        constraint = read_options(message, vocab_size=VOCAB).constraint
        assert constraint is not None
        await compiler.compile(constraint)

    with pytest.raises(InvalidArgument) as caught:
        await read_and_compile()
    assert (caught.value.reason, caught.value.field) == ("BAD_CONSTRAINT", f"sampling.{field}")


async def test_a_constraint_is_compiled_once(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Constraint] = []
    really_compile = compiler._compile

    def compile_and_note(constraint: Constraint) -> LLMatcher:
        compiled.append(constraint)
        return really_compile(constraint)

    monkeypatch.setattr(compiler, "_compile", compile_and_note)
    for _ in range(3):
        for constraint, _ in CASES.values():
            await compiler.compile(constraint)
    assert compiled == [constraint for constraint, _ in CASES.values()]


async def test_who_asks_for_the_same_at_once_waits_for_one_compiling(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who leaves meanwhile takes nothing from the others, and what fails is tried again."""
    compiled: list[str] = []
    really_compile = compiler._compile

    def compile_and_note(constraint: Constraint) -> LLMatcher:
        compiled.append(constraint.text)
        return really_compile(constraint)

    monkeypatch.setattr(compiler, "_compile", compile_and_note)
    asking = [asyncio.create_task(compiler.compile(Constraint("regex", "ab+"))) for _ in range(4)]
    await asyncio.sleep(0)
    asking.pop(0).cancel()
    grammars = await asyncio.gather(*asking)
    assert len({id(grammar.matcher) for grammar in grammars}) == 3
    assert compiled == ["ab+"]
    for _ in range(2):
        outcomes = await asyncio.gather(
            *(compiler.compile(Constraint("regex", "(a")) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(outcome, InvalidArgument) for outcome in outcomes)
    assert compiled == ["ab+", "(a", "(a"]


async def test_what_nobody_waits_for_any_more_is_not_compiled(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who still wait would wait for it, too."""
    compiled: list[str] = []
    go_on = threading.Event()
    really_compile = compiler._compile

    def compile_and_note(constraint: Constraint) -> LLMatcher:
        compiled.append(constraint.text)
        go_on.wait(20)
        return really_compile(constraint)

    monkeypatch.setattr(compiler, "_compile", compile_and_note)
    first, left, last = (asyncio.create_task(compiler.compile(Constraint("regex", text))) for text in "abc")
    await until(lambda: compiled == ["a"])
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    go_on.set()
    await asyncio.gather(first, last)
    assert compiled == ["a", "c"]


async def test_only_so_many_wait_for_compiling(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    really_compile = compiler._compile

    def compile_late(constraint: Constraint) -> LLMatcher:
        go_on.wait(20)
        return really_compile(constraint)

    monkeypatch.setattr(compiler, "_compile", compile_late)
    asking = [asyncio.create_task(compiler.compile(Constraint("regex", f"a{number}"))) for number in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await compiler.compile(Constraint("regex", "b"))
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 1)
    asking.append(asyncio.create_task(compiler.compile(Constraint("regex", "a0"))))  # no more to do
    await asyncio.sleep(0)
    go_on.set()
    assert len(await asyncio.gather(*asking)) == 33
    await compiler.compile(Constraint("regex", "b"))


async def test_the_engine_ends_an_answer_that_is_complete(make_engine: MakeEngine, compiler: GrammarCompiler) -> None:
    """Beside others without a constraint, and also where the end of sequence is ignored."""
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


async def test_a_constraint_that_turns_out_too_complex_is_its_callers_fault(
    make_engine: MakeEngine, compiler: GrammarCompiler
) -> None:
    """Else one client could have a release taken for broken."""
    engine = await make_engine(model=MODEL)
    grammar = await compiler.compile(Constraint("regex", "((a{0,100}){0,100}){0,100}b"))
    generation = engine.open(SamplingOptions(logit_bias={A: 100.0}), salt=b"", priority=0, grammar=grammar)
    generation.add_text([5, 6, 7])
    generation.end_prompt(100)
    with pytest.raises(InvalidArgument, match="too many expressions") as caught:
        await read(generation)
    assert caught.value.reason == "CONSTRAINT_FAILED"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_that_has_no_token_left_fails_alone(
    make_engine: MakeEngine, compiler: GrammarCompiler, temperature: float
) -> None:
    """Its grammar allows nothing but the end, and the end must not come yet."""
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
