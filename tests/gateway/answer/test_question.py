"""Building prompts without blocking the event loop."""

import asyncio
from pathlib import Path

import pytest

from checkpoint.store import ModelStore
from gateway.answer.checks import Conversation
from gateway.answer.question import build_segments
from gateway.stages.releases import open_release
from tests.gateway.halves import TAG
from tests.processing.test_prompt import user


@pytest.mark.parametrize(
    ("parts", "is_inline"),
    [(["a"] * 64, True), (["a"] * 65, False), (["a" * 4096], True), (["a" * 4097], False)],
)
async def test_a_large_prompt_is_built_in_a_thread(parts: list[str], is_inline: bool, store: Path) -> None:
    """Many short texts take as long as one long text."""
    release = open_release(ModelStore(store), TAG)
    conversation = Conversation([user(*parts)], num_characters=sum(map(len, parts)))
    release.prompts.build_segments(conversation.messages)
    building = asyncio.create_task(build_segments(release, conversation))
    await asyncio.sleep(0)
    assert building.done() == is_inline
    assert release.prompts.count_tokens(await building, []) > sum(map(len, parts))


async def test_a_conversation_of_a_new_form_is_built_in_a_thread(store: Path) -> None:
    """The process of the template may take seconds for it."""
    release = open_release(ModelStore(store), TAG)
    for number, texts in enumerate((["a", "b"], ["c", "d"], ["a", "b", "c"])):
        building = asyncio.create_task(build_segments(release, Conversation([user(*texts)], num_characters=2)))
        await asyncio.sleep(0)
        assert building.done() == (number == 1)
        await building
