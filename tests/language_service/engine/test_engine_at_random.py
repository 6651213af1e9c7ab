"""Compare answers under random traffic with a slow reference."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.interface import Engine, Event, Finished, FinishReason, Prefilled, Tokens
from language_service.model.decoder import Decoder
from language_service.sampling.grammar import Grammar, GrammarCompiler
from language_service.sampling.options import Constraint, SamplingOptions
from tests.language_service import one_pass, reference
from tests.language_service.asking import Part, embed, feed
from tests.language_service.conftest import MakeEngine
from tests.language_service.slow_sampling import SlowAnswer
from tests.language_service.small import CONFIG, GRIDS, make_decoder, make_grid_image, make_image

VOCAB, EOS = 264, 2
MODEL, GRID_MODEL = (make_decoder(config.model_copy(update={"vocab_size": VOCAB})) for config in (CONFIG, GRIDS))
NUM_REQUESTS = 24
PREFIXES = [[5, 6, 7, 8] * 3, [9] * 11, list(range(20, 41)), [40, 41, 42] * 3]
CONSTRAINTS = [
    Constraint("regex", "(abcab){1,6}[0-9]+(xyz)*!"),
    Constraint("regex", "(a|bb)+c?"),
    Constraint("choices", '["yes", "yesterday", "no"]'),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request."""

    model: Decoder
    parts: list[Part]
    options: SamplingOptions
    max_tokens: int
    salt: bytes
    priority: int

    @property
    def num_prompt(self) -> int:
        return sum(len(part) for part in self.parts)


@pytest.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(byte_tokenizer().to_str(), vocab_size=VOCAB, eos_token_ids=[EOS])
    yield compiler
    compiler.close()


@pytest.mark.parametrize("model", [MODEL, GRID_MODEL], ids=["ours", "grids"])
@pytest.mark.parametrize("seed", range(10))
async def test_every_answer_under_random_traffic_equals_the_reference(
    make_engine: MakeEngine, compiler: GrammarCompiler, model: Decoder, seed: int
) -> None:
    """Prompts share prefixes, blocks run out, and clients cancel."""
    rng = random.Random(seed)
    max_running = rng.choice([1, 3, 6])
    engine = await make_engine(
        model=model,
        num_blocks=rng.choice([18, 24, 40]),
        max_running=max_running,
        max_step_tokens=max_running + rng.choice([1, 4, 20]),
        max_drafts=rng.choice([0, 4]),
        reuse_prefixes=rng.random() < 0.8,
    )

    async def one(rng: random.Random) -> int:
        question = make_question(rng, model, room=engine.context_length)
        constraint = question.options.constraint
        grammars = [await compiler.compile(constraint) if constraint else None for _ in range(2)]
        events = await ask(engine, question, grammars[0], rng)
        if events:
            check(question, events, grammars[1])
        return len(events)

    answered = await asyncio.gather(*(one(random.Random(rng.getrandbits(32))) for _ in range(NUM_REQUESTS)))
    assert sum(num_events > 0 for num_events in answered) > NUM_REQUESTS // 4


def make_question(rng: random.Random, model: Decoder, room: int) -> Question:
    prefix = rng.choice(PREFIXES)
    parts: list[Part] = [prefix[: rng.choice([1, 4, 8, len(prefix)])]]
    for _ in range(rng.randint(0, 3)):
        text = [rng.choice([5, 6, 7, 8, 40, 41, rng.randrange(3, VOCAB)]) for _ in range(rng.randint(1, 9))]
        parts.append(text if rng.random() < 0.5 else make_any_image(rng, model))
    max_tokens = min(rng.choice([1, 2, 5, 20, 40]), room - sum(len(part) for part in parts))
    return Question(
        model=model,
        parts=parts,
        options=SamplingOptions(**make_options(rng, max_tokens)),
        max_tokens=max_tokens,
        salt=rng.choice([b"", b"", b"other"]),
        priority=rng.choice([0, 0, 1]),
    )


def make_any_image(rng: random.Random, model: Decoder) -> Part:
    if model is GRID_MODEL:
        return make_grid_image(rng.randrange(3), *rng.choice([(1, 1), (2, 2), (1, 5), (5, 1), (2, 3)]))
    return make_image(rng.randrange(3), rng.choice([1, 4, 5]))


def make_options(rng: random.Random, max_tokens: int) -> dict[str, Any]:
    some: dict[str, Any] = {
        "temperature": rng.choice([0.1, 0.5, 1.0, 2.0]),
        "top_k": rng.choice([1, 10, 300]),
        "top_p": rng.choice([0.1, 0.5, 0.9]),
        "min_p": rng.choice([0.01, 0.3]),
        "repetition_penalty": rng.choice([0.5, 1.3, 3.0]),
        "presence_penalty": rng.choice([-1.0, 1.5]),
        "frequency_penalty": rng.choice([-0.3, 0.7]),
        "logit_bias": {rng.randrange(VOCAB): 8.0, rng.randrange(VOCAB): -100.0, EOS: 3.0},
        "num_logprobs": rng.choice([0, 3]),
        "ignore_eos": True,
        "stop_token_ids": frozenset(rng.randrange(VOCAB) for _ in range(9)),
        "min_tokens": rng.randint(0, max_tokens),
        "constraint": rng.choice(CONSTRAINTS),
    }
    chosen = {name: value for name, value in some.items() if rng.random() < 0.3}
    if "constraint" in chosen:
        chosen.pop("stop_token_ids", None)  # the constraint may allow nothing else
    return {"seed": rng.randrange(1000), **chosen}


async def ask(engine: Engine, question: Question, grammar: Grammar | None, rng: random.Random) -> list[Event]:
    """Return the events of the answer, none if cancelled."""
    cancels_after = rng.choice([0, 1, 2, 3, 6, *[1000] * 10])  # parts and events
    await asyncio.sleep(rng.choice([0, 0.002, 0.01]))
    generation = engine.open(
        question.options,
        salt=question.salt,
        priority=question.priority,
        is_background=rng.random() < 0.3,
        grammar=grammar,
    )
    events: list[Event] = []
    try:
        for place, part in enumerate(question.parts):
            if place == cancels_after:
                return []
            feed(generation, [part])
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.01]))
        generation.end_prompt(question.max_tokens)
        async for event in generation:
            events.append(event)
            if len(question.parts) + len(events) == cancels_after:
                return []
        return events
    finally:
        generation.cancel()


def check(question: Question, events: list[Event], grammar: Grammar | None) -> None:
    """Compare each token with the slow decoder and sampler."""
    prefilled, *chunks, finished = events
    assert isinstance(prefilled, Prefilled)
    assert isinstance(finished, Finished)
    assert finished.usage.num_cached_prompt <= prefilled.num_cached_prompt < question.num_prompt
    tokens = [token for chunk in chunks if isinstance(chunk, Tokens) for token in chunk.token_ids]
    logprobs = [one for chunk in chunks if isinstance(chunk, Tokens) for one in chunk.logprobs]
    assert len(logprobs) == (0 if question.options.num_logprobs is None else len(tokens))
    assert (finished.usage.num_prompt, finished.usage.num_answer) == (question.num_prompt, len(tokens))
    prompt_ids = [token for part in question.parts if isinstance(part, list) for token in part]
    slow = SlowAnswer(question.options, prompt_ids, eos_token_id=EOS, grammar=grammar)
    stream = random.Random(question.options.seed)
    for place, logits_V in enumerate(_logits(question, tokens)):
        if slow.is_complete or place == question.max_tokens:
            assert place == len(tokens)
            break
        mark = stream.random() if question.options.temperature > 0 else 0.0
        # Summing in another order changes logits a little. If that changes the choice, either token is right.
        accepted = (slow.choose(logits_V + noise * torch.randn(VOCAB), mark) for noise in (0, *[1e-4] * 20))
        if place == len(tokens):
            assert any(slow.is_end(token) for token in accepted)
            assert finished.reason is FinishReason.STOP
            return
        assert tokens[place] in accepted, place
        assert not slow.is_end(tokens[place])
        slow.note(tokens[place])
        if logprobs:
            expected = logits_V.log_softmax(-1)[tokens[place]].item()
            assert logprobs[place].chosen == pytest.approx(expected, abs=1e-3)
    assert finished.reason is (FinishReason.STOP if slow.is_complete else FinishReason.LENGTH)


def _logits(question: Question, answer: list[int]) -> Tensor:
    """Return the logits of each answer token and one more."""
    nonempty: list[Part] = [part for part in [*question.parts, answer] if len(part)]
    if question.model is GRID_MODEL:
        return one_pass.logits(GRID_MODEL, nonempty)[-1 - len(answer) :]
    return reference.logits(MODEL, embed(MODEL, nonempty))[-1 - len(answer) :]
