"""Compare the engine with transformers on prompts with image grids."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from language_service.engine import runner
from language_service.engine.runner import Runner
from language_service.model.deepstack import ImageRows
from language_service.model.positions import token_positions
from language_service.scheduling.sequence import Sequence as ScheduledSequence
from tests.language_service import one_pass
from tests.language_service.asking import Part, count, feed, read, start
from tests.language_service.qwen3_vl import IMAGE_TOKEN, NUM_TOKENS, Pair, Reference
from tests.language_service.recording import RecordingRunner
from tests.language_service.small import make_cache, make_chunk, make_paged_engine

pytestmark = pytest.mark.slow  # two models, many modes, 64 tokens each
BLOCK_SIZE = 4
TOLERANCE = 1e-4  # of a logit
SHOWS = 0.1  # a fault changes a log-probability by more


class Served:
    """An engine that compares its logits with a reference."""

    def __init__(self, pair: Pair, *, num_blocks: int = 128, **limits: Any) -> None:
        self._runner = RecordingRunner(pair.ours, make_cache(num_blocks, BLOCK_SIZE, pair.config))
        limits = {"max_waiting": 8, "max_step_tokens": 256, "reuse_prefixes": False, **limits}
        self.engine = make_paged_engine(self._runner, **limits)
        self._questions: dict[ScheduledSequence, Reference] = {}

    async def ask(self, question: Reference) -> int:
        """Check the answer. Return the number of cached tokens."""
        generation: Any = start(self.engine, ignore_eos=True, logit_bias={IMAGE_TOKEN: -100.0})
        self._questions[generation.sequence] = question
        with self.engine._condition:  # no step starts before the whole prompt has arrived
            feed(generation, question.parts)
            generation.end_prompt(NUM_TOKENS)
        tokens, finished = await read(generation)
        assert tokens == question.answer
        return finished.usage.num_cached_prompt

    async def close(self) -> float:
        """Return the largest difference of a logit."""
        await self.engine.close()
        differences = []
        for row in self._runner.rows:
            question = self._questions[row.sequence]
            first = row.index + 1 - len(row.drafts) - question.num_prompt
            if row.drafts == question.answer[first : first + len(row.drafts)]:  # else the row is dropped
                differences.append(float((row.logits_V - question.logits_TV[row.index]).abs().max()))
        assert len(differences) >= len(self._questions) * NUM_TOKENS
        return max(differences)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(tied=request.param)


@pytest.fixture(scope="module")
def questions(pair: Pair) -> list[Reference]:
    """Return questions with none to four images of different grids.

    Prompts begin alike, and some differ right after an image.
    """
    first, wide, tall, small = pair.image(1, 3, 4), pair.image(2, 1, 7), pair.image(3, 5, 2), pair.image(4, 2, 2)
    prompts: list[list[Part]] = [
        [[5, 17, 99, 200, 31, 8]],
        [[5, 17, 99], first, [31, 8, 7]],
        [[5, 17, 99], first, [9], wide, [31, 8]],
        [[5, 17, 99], first, [9], wide, [32], tall, [8, 200]],
        [[5], tall, [99], small, [31], wide, [8], first, [7]],
        [small, [6]],
    ]
    return [pair.ask(parts) for parts in prompts]


async def test_one_question_at_a_time(pair: Pair, questions: list[Reference]) -> None:
    served = Served(pair)
    for question in questions:
        assert await served.ask(question) == 0
    assert await served.close() < TOLERANCE


async def test_questions_together(pair: Pair, questions: list[Reference]) -> None:
    served = Served(pair)
    await asyncio.gather(*map(served.ask, questions))
    assert await served.close() < TOLERANCE


@pytest.mark.parametrize("max_step_tokens", [2, 3, 5, 7])
async def test_prompts_in_small_chunks(pair: Pair, questions: list[Reference], max_step_tokens: int) -> None:
    served = Served(pair, max_running=1, max_step_tokens=max_step_tokens)
    await asyncio.gather(*map(served.ask, questions))
    assert await served.close() < TOLERANCE


async def test_preempted_questions(pair: Pair, questions: list[Reference]) -> None:
    for reuse_prefixes in (False, True):
        served = Served(pair, num_blocks=45, max_step_tokens=24, reuse_prefixes=reuse_prefixes)
        before = count("preemptions")
        await asyncio.gather(*map(served.ask, questions))
        assert await served.close() < TOLERANCE
        assert count("preemptions") > before


async def test_prefixes_that_end_inside_an_image(pair: Pair, questions: list[Reference]) -> None:
    served = Served(pair, reuse_prefixes=True)
    cached = [await served.ask(question) for question in questions]
    # The first image takes the tokens 3 to 14, the second one 16 to 22. A block has 4 tokens.
    assert cached[1:4] == [0, 12, 20]
    assert await served.close() < TOLERANCE
    together = Served(pair, reuse_prefixes=True, max_step_tokens=11)
    assert sum(await asyncio.gather(*map(together.ask, questions))) > 0
    assert await together.close() < TOLERANCE


async def test_answers_with_drafts(pair: Pair, questions: list[Reference]) -> None:
    served = Served(pair, max_drafts=4)
    before = count("drafts", outcome="right")
    await asyncio.gather(*map(served.ask, questions))
    assert await served.close() < TOLERANCE
    assert count("drafts", outcome="right") > before


async def test_a_second_turn_with_another_image(pair: Pair, questions: list[Reference]) -> None:
    for reuse_prefixes in (False, True):
        served = Served(pair, reuse_prefixes=reuse_prefixes, max_step_tokens=16)
        first = questions[2]
        await served.ask(first)
        second = pair.ask([*first.parts, [*first.answer, 20], pair.image(5, 4, 3), [21, 22]])
        cached = await served.ask(second)
        assert cached == ((first.num_prompt + NUM_TOKENS - 1) // BLOCK_SIZE * BLOCK_SIZE if reuse_prefixes else 0)
        assert await served.close() < TOLERANCE


def forward_in_chunks(pair: Pair, question: Reference, cuts: Sequence[int]) -> Tensor:
    """Return the logits after the last token of each chunk.

    The chunks cover prompt and answer. `cuts` are the indices between them.
    """
    parts = [*question.parts, question.answer]
    ids, images = one_pass.token_ids(parts), one_pass.place(parts)
    blocks = list(range(-(-len(ids) // BLOCK_SIZE)))
    runner_of_chunks = Runner(pair.ours, make_cache(len(blocks), BLOCK_SIZE, pair.config))
    edges = [0, *cuts, len(ids)]
    chunks = [make_chunk(start, ids[start:end], blocks) for start, end in pairwise(edges)]
    return torch.cat([runner_of_chunks.forward([chunk], [], [images]) for chunk in chunks])


def test_a_prompt_cut_at_every_offset_of_every_image(pair: Pair, questions: list[Reference]) -> None:
    largest = 0.0
    for question in questions[1:]:
        for image in one_pass.place(question.parts):
            for cut in range(max(1, image.start), image.end + 1):
                logits_BV = forward_in_chunks(pair, question, [cut])
                expected_BV = question.logits_TV[[cut - 1, -1]]
                largest = max(largest, float((logits_BV - expected_BV).abs().max()))
    assert largest < TOLERANCE


def test_one_token_at_a_time(pair: Pair, questions: list[Reference]) -> None:
    question = questions[3]
    logits_TV = forward_in_chunks(pair, question, range(1, question.num_prompt + NUM_TOKENS))
    torch.testing.assert_close(logits_TV, question.logits_TV, rtol=0, atol=TOLERANCE)


ADD_LEVEL: Any = ImageRows.add_level  # before it is patched
FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no DeepStack": lambda patch: patch.setattr(ImageRows, "add_level", lambda *_: None),
    "levels in another order": lambda patch: patch.setattr(
        ImageRows, "add_level", lambda rows, level, hidden: ADD_LEVEL(rows, 2 - level, hidden)
    ),
    "positions with one part": lambda patch: patch.setattr(
        runner, "token_positions", lambda start, end, _images: (list(range(start, end)),) * 3
    ),
    "no shift after images": lambda patch: patch.setattr(runner, "shift_at", lambda *_: 0),
    "rows and columns swapped": lambda patch: patch.setattr(
        runner, "token_positions", lambda *args: [token_positions(*args)[part] for part in (0, 2, 1)]
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(pair: Pair, questions: list[Reference], fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above would fail with each of these."""
    question = questions[3]
    cuts = range(question.num_prompt, question.num_prompt + NUM_TOKENS)
    right_BV = question.logits_TV[question.num_prompt - 1 :].log_softmax(-1)
    for broken in (False, True):
        if broken:
            FAULTS[fault](monkeypatch)
        difference = (forward_in_chunks(pair, question, cuts).log_softmax(-1) - right_BV).abs().max()
        assert difference > SHOWS if broken else difference < TOLERANCE
