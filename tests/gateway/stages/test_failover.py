"""Failover between several replicas of a stage."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chassis.errors import Code, InvalidArgument, ResourceExhausted, TandemError, Unavailable
from tandem.v1 import language_pb2_grpc, vision_pb2_grpc
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import language_info, vision_info
from tests.gateway.scripted import ScriptedLanguage, ScriptedVision, StageServer, World, ask, error_of, eventually

IMAGE = b"an image"
DRAINING = Unavailable("The model is being unloaded.", reason="MODEL_DRAINING")
FULL = ResourceExhausted("The queue is full.", reason="QUEUE_FULL", retry_after_s=1)


class Pair:
    """A world with a second replica of each stage."""

    def __init__(self, world: World, vision: ScriptedVision, language: ScriptedLanguage) -> None:
        self.world = world
        self.visions = [world.vision, vision]
        self.languages = [world.language, language]

    def say(self, text: str) -> None:
        self.world.say(text)
        self.languages[1].answer = self.languages[0].answer

    @property
    def num_encodes(self) -> int:
        return sum(vision.num_encodes for vision in self.visions)


@pytest.fixture
async def pair(make_world: MakeWorld, store: Path) -> AsyncIterator[Pair]:
    vision = ScriptedVision(vision_info(store), [])  # type: ignore[abstract]
    language = ScriptedLanguage(language_info(store), [])  # type: ignore[abstract]
    vision.go.set()
    async with (
        StageServer(vision, vision_pb2_grpc, "VisionService") as vision_server,
        StageServer(language, language_pb2_grpc, "LanguageService") as language_server,
        make_world(
            more_vision=[vision_server.address],
            more_language=[language_server.address],
            routing="least-busy",  # so that calls take turns
        ) as world,
    ):
        await world.ask(b"another image", "Warm up?")
        yield Pair(world, vision, language)


async def test_calls_go_to_the_least_busy_replica(pair: Pair) -> None:
    for language in pair.languages:
        language.hangs = True
        language.starts.clear()
    calls = [asyncio.create_task(pair.world.ask("?")) for _ in range(10)]
    await eventually(lambda: sum(len(language.starts) for language in pair.languages) == 10)
    assert [len(language.starts) for language in pair.languages] == [5, 5]
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("error", [DRAINING, FULL])
async def test_an_image_is_retried_on_another_replica(pair: Pair, error: TandemError) -> None:
    pair.visions[0].error = error
    for number in range(4):
        answer = await pair.world.ask(b"image %d" % number, "What?")
        assert answer.finished.images[0].num_visual_tokens == 32
    assert pair.visions[0].num_encodes > 0


async def test_a_rejected_image_is_not_retried(pair: Pair) -> None:
    """The image is at fault, not the replica."""
    before = pair.num_encodes
    for vision in pair.visions:
        vision.error = InvalidArgument("The image is truncated.", reason="IMAGE_TRUNCATED")
    assert (await error_of(pair.world.ask(IMAGE, "What?"))).reason == "IMAGE_TRUNCATED"
    assert pair.num_encodes == before + 1


@pytest.mark.parametrize("error", [DRAINING, FULL])
async def test_a_prompt_is_replayed_before_its_first_token_without_encoding_images_again(
    pair: Pair, error: TandemError
) -> None:
    pair.say("Yes.")
    pair.languages[0].error = error
    before = pair.num_encodes
    answers = [await pair.world.ask("Look: ", IMAGE, "Red?") for _ in range(4)]
    assert [answer.text for answer in answers] == ["Yes."] * 4
    assert pair.num_encodes == before + 1
    assert len(pair.languages[0].starts) > 0


async def test_an_answer_that_breaks_off_is_not_retried_and_keeps_its_text(pair: Pair) -> None:
    pair.say("A red c")
    for language in pair.languages:
        language.late_error = DRAINING
        language.starts.clear()
    call = pair.world.stub.Generate(ask("What?", stop=["cup"]))
    texts: list[str] = []

    async def read() -> None:
        async for response in call:
            texts.append(response.delta.text)  # noqa: PERF401  (texts before the error must be kept)

    error = await error_of(read())
    assert "".join(texts) == "A red c"  # including the last letter, which the stop string held back
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "MODEL_DRAINING")
    assert error.metadata["completion_tokens"] == "7"
    assert sum(len(language.starts) for language in pair.languages) == 1


@pytest.mark.parametrize("stage", ["vision", "language"])
async def test_a_dead_replica_fails_no_request(pair: Pair, stage: str) -> None:
    pair.say("Yes.")
    await pair.world.stage_servers[stage].stop()
    answers = [await pair.world.ask(b"image %d" % number, "Red?") for number in range(6)]
    assert [answer.text for answer in answers] == ["Yes."] * 6


async def test_if_all_replicas_fail_the_last_error_is_returned(pair: Pair) -> None:
    for language in pair.languages:
        language.error = FULL
        language.starts.clear()
    error = await error_of(pair.world.ask("?"))
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 1)
    assert [len(language.starts) for language in pair.languages] == [1, 1]


async def test_if_one_replica_is_full_and_the_other_dead_the_client_gets_a_retry_delay(pair: Pair) -> None:
    """Waiting helps, in whichever order the two were tried."""
    pair.languages[1].error = FULL
    await pair.world.stage_servers["language"].stop()
    for _ in range(3):
        error = await error_of(pair.world.ask("?"))
        assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 1)


async def test_a_replica_with_other_weights_under_the_same_tag_is_no_alternative(pair: Pair) -> None:
    """During a deployment one tag may mean two models."""
    pair.languages[1].info.half_digest = bytes(32)
    pair.languages[0].error = DRAINING
    pair.languages[1].starts.clear()
    await asyncio.sleep(2.2)  # the gateway refreshes every 2 s
    for _ in range(3):
        pair.languages[1].starts.clear()
        call = asyncio.create_task(pair.world.ask("?"))
        await asyncio.wait([call])
        assert (call.exception() is None) == (len(pair.languages[1].starts) == 1)


async def test_a_replica_of_another_engine_under_the_same_tag_gets_no_request(pair: Pair) -> None:
    """Otherwise an answer would depend on their load."""
    pair.say("Yes.")
    for language, backend in zip(pair.languages, ("torch", "vllm"), strict=True):
        language.info.backend = backend
    await asyncio.sleep(2.2)  # the gateway refreshes every 2 s
    for language in pair.languages:
        language.starts.clear()
    answers = [await pair.world.ask("?") for _ in range(6)]
    assert [answer.text for answer in answers] == ["Yes."] * 6
    assert sorted(len(language.starts) for language in pair.languages) == [0, 6]
