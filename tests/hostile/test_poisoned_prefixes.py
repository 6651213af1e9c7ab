"""False visual tokens at the language service under a tenant's key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.admission import Tenant
from tests.language_service.process import TAG, Request, Running, image, running, start, text

pytestmark = pytest.mark.timeout(300)

KEY = b"k" * 32
ITS_IMAGE, ANOTHER = 1, 2  # seeds of visual tokens

Answer = list[tuple[int, float]]  # token and log-probability


@pytest.fixture(scope="module")
def language(store: Path) -> Iterator[Running]:
    with running(store, "--tags", TAG) as language:
        yield language


def ask(language: Running, salt: bytes, seed: int) -> tuple[Answer, int]:
    """Return an answer, and its cached prompt tokens."""
    opening = start(temperature=0, max_tokens=8, num_logprobs=0)
    opening.start.cache_salt = salt
    prompt: list[Request] = [opening, text(1, 2, 3), image(language.vision_digest, seed, visual_key=KEY), text(4, 5)]
    *responses, last = language.stub.Generate(iter(prompt), timeout=60)
    chunks = [response.tokens for response in responses if response.HasField("tokens")]
    answer = [
        (token, round(entry.chosen.logprob, 3))
        for chunk in chunks
        for token, entry in zip(chunk.token_ids, chunk.logprobs, strict=True)
    ]
    return answer, last.finished.usage.cached_prompt_tokens


def test_tokens_stored_under_a_tenants_key_and_salt_do_not_answer_for_its_image(language: Running) -> None:
    salt = Tenant(name="victim").salt
    expected, _ = ask(language, b"elsewhere", ITS_IMAGE)
    poison, _ = ask(language, salt, ANOTHER)
    assert poison != expected
    assert ask(language, salt, ITS_IMAGE) == (expected, 0)
    again, num_cached = ask(language, salt, ITS_IMAGE)
    assert again == expected
    assert num_cached > 0
