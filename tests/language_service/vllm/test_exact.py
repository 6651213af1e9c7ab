"""Greedy answers equal those of transformers, over gRPC."""

from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.language_service.process import Request, ask, image, random_bytes, start, text
from tests.language_service.vllm.conftest import VllmRunning
from tests.language_service.vllm.models import CONFIG, NUM_TOKENS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

# Token ids, or the seed of an image.
PROMPTS: dict[str, list[list[int] | int]] = {
    "text": [[5, 17, 99, 200, 31, 8, 64]],
    "long text": [[token % 250 for token in range(300)]],
    "an image first": [1, [7, 8, 9]],
    "an image alone": [2],
    "several images": [[5, 17], 3, [99], 4, 3, [12, 13]],
}


def embeddings(seed: int) -> Tensor:
    shape = (CONFIG.num_visual_tokens, CONFIG.language.width)
    return torch.frombuffer(bytearray(random_bytes(seed, prod(shape))), dtype=torch.bfloat16).view(shape).float()


def expected(theirs: Any, parts: list[list[int] | int]) -> list[int]:
    """Return the greedy answer of transformers."""
    embed = theirs.get_input_embeddings()
    rows = [embeddings(part) if isinstance(part, int) else embed(torch.tensor(part)) for part in parts]
    prompt_TD = torch.cat(rows)
    answer: list[int] = theirs.generate(
        inputs_embeds=prompt_TD[None],
        attention_mask=torch.ones(1, len(prompt_TD)),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
    )[0].tolist()
    return answer


def requests(service: VllmRunning, parts: list[list[int] | int], **sampling: Any) -> list[Request]:
    segments = [image(service.vision_digest, part) if isinstance(part, int) else text(*part) for part in parts]
    return [start(max_tokens=NUM_TOKENS, **sampling), *segments]


@pytest.fixture(scope="module")
def answers(theirs: Any) -> dict[str, list[int]]:
    return {name: expected(theirs, parts) for name, parts in PROMPTS.items()}


def test_alone(service: VllmRunning, answers: dict[str, list[int]]) -> None:
    found = {name: ask(service, *requests(service, parts), timeout=60)[0] for name, parts in PROMPTS.items()}
    assert found == answers
    assert len({tuple(answer) for answer in answers.values()}) == len(PROMPTS)


def test_in_a_batch_with_cached_prefixes(service: VllmRunning, answers: dict[str, list[int]]) -> None:
    jobs = list(PROMPTS.items()) * 3
    with ThreadPoolExecutor(len(jobs)) as callers:
        found = list(callers.map(lambda job: ask(service, *requests(service, job[1]), timeout=120)[0], jobs))
    assert found == [answers[name] for name, _ in jobs]


def test_log_probabilities_are_those_of_transformers(service: VllmRunning, theirs: Any) -> None:
    prompt = PROMPTS["text"][0]
    assert isinstance(prompt, list)
    responses = list(service.stub.Generate(iter(requests(service, [prompt], num_logprobs=3)), timeout=60))
    found = [one for response in responses for one in response.tokens.logprobs]
    answer = [one.chosen.token_id for one in found]
    logprobs_TV = theirs(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)[len(prompt) - 1 :]
    assert len(found) == NUM_TOKENS
    for position, row_V in zip(found, logprobs_TV, strict=False):
        values, ids = row_V.topk(3)
        assert [one.token_id for one in position.top] == ids.tolist()
        assert [one.logprob for one in position.top] == pytest.approx(values.tolist(), abs=1e-3)
        assert position.chosen.logprob == pytest.approx(float(values[0]), abs=1e-3)
