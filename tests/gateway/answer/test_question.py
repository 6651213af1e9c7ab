"""Prompts are built where they hold up nobody."""

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
    ("parts", "is_built_at_once"),
    [(["a"] * 64, True), (["a"] * 65, False), (["a" * 4096], True), (["a" * 4097], False)],
)
async def test_what_takes_long_is_built_beside_the_event_loop(
    parts: list[str], is_built_at_once: bool, store: Path
) -> None:
    """Thousands of texts of one character take as long as a text of a hundred thousand."""
    release = open_release(ModelStore(store), TAG)
    conversation = Conversation([user(*parts)], num_characters=sum(map(len, parts)))
    building = asyncio.create_task(build_segments(release, conversation))
    await asyncio.sleep(0)
    assert building.done() == is_built_at_once
    assert release.prompts.count_tokens(await building) > sum(map(len, parts))
