"""A Qwen3-VL release on a whole stack with vLLM, against transformers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem import Client
from tandem.stack.stack import Stack, StackConfig
from tests.end_to_end import test_qwen3_vl as with_our_engine
from tests.end_to_end.test_qwen3_vl import MAX_PIXELS, TAG
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


# Alone, and in a batch with cached prefixes: with images of several sizes and all their levels.
test_greedy_answers = with_our_engine.test_greedy_answers_equal_those_of_transformers
test_answers_in_a_batch = with_our_engine.test_answers_in_a_batch_equal_those_of_transformers
