"""Conversations stay at the replica that holds their beginning."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from pathlib import Path

from tandem.v1 import language_pb2_grpc
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import language_info
from tests.gateway.scripted import ScriptedLanguage, StageServer

REPLICAS = 4


async def test_questions_about_an_image_go_to_one_replica_and_other_images_to_others(
    make_world: MakeWorld, store: Path
) -> None:
    more = [ScriptedLanguage(language_info(store), []) for _ in range(REPLICAS - 1)]  # type: ignore[abstract]
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(StageServer(one, language_pb2_grpc, "LanguageService")) for one in more
        ]
        world = await stack.enter_async_context(make_world(more_language=[server.address for server in servers]))
        languages = [world.language, *more]
        async with asyncio.timeout(20):  # a gateway starts with the replicas that it knows by then
            for number in itertools.count():
                if all(language.starts for language in languages):
                    break
                await world.ask(b"first image %d" % number, "What?")
        used = []
        for number in range(48):
            for language in languages:
                language.starts.clear()
            for question in ("What?", "Where?"):
                await world.ask(b"image %d" % number, question)
            counts = [len(language.starts) for language in languages]
            assert sorted(counts) == [0] * (REPLICAS - 1) + [2]
            used.append(counts.index(2))
        assert set(used) == set(range(REPLICAS))
