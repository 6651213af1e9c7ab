"""A Qwen3-VL release on a whole stack with vLLM, against transformers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tandem import Client
from tandem.stack.stack import Stack, StackConfig
from tests.end_to_end import test_qwen3_vl as with_our_engine
from tests.end_to_end.test_qwen3_vl import CONVERSATIONS, MAX_PIXELS, TAG, tokens_of
from tests.language_service.vllm.conftest import ENGINE_FLAGS, HOME

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

hub, models, expected = with_our_engine.hub, with_our_engine.models, with_our_engine.expected


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Client]:
    config = StackConfig(
        models=models,
        release=TAG,
        precision="float32",
        threads=1,
        drain_s=2,
        vision_flags=("--max-resized-pixels", str(MAX_PIXELS)),
        language_flags=ENGINE_FLAGS,
        language_python=str(HOME / "bin" / "python"),
    )
    with Stack(config) as stack, Client(stack.address) as client:
        yield client


def test_greedy_answers_equal_those_of_transformers(client: Client, expected: dict[str, list[int]]) -> None:
    """Images of several sizes, with all their levels."""
    for name, messages in CONVERSATIONS.items():
        assert tokens_of(client, messages) == expected[name], name


def test_answers_in_a_batch_equal_those_of_transformers(client: Client, expected: dict[str, list[int]]) -> None:
    """All at once and twice: batched, chunked, with cached prefixes."""
    jobs = list(CONVERSATIONS.items()) * 2
    with ThreadPoolExecutor(len(jobs)) as callers:
        answers = list(callers.map(lambda job: tokens_of(client, job[1]), jobs))
    assert {name: tokens for (name, _), tokens in zip(jobs, answers, strict=True)} == expected
