"""Several replicas of a stage: who is asked, who is asked instead, and what is never asked twice."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.errors import Internal, InvalidArgument, ResourceExhausted, TandemError, Unavailable, from_rpc_error
from gateway.endpoint import Endpoint
from gateway.stages import Stage
from tandem.v1 import language_pb2_grpc, model_pb2, vision_pb2_grpc
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import TAG, language_info, vision_info
from tests.gateway.scripted import ScriptedLanguage, ScriptedVision, Switch, World, ask, eventually

PICTURE = b"a picture"
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
        Switch(vision, vision_pb2_grpc, "VisionService") as vision_switch,
        Switch(language, language_pb2_grpc, "LanguageService") as language_switch,
        make_world(more_vision=[vision_switch.address], more_language=[language_switch.address]) as world,
    ):
        await world.ask(b"another picture", "Warm up?")
        yield Pair(world, vision, language)


async def error_of(call: Any) -> TandemError:
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def test_calls_go_to_the_idlest_replica(pair: Pair) -> None:
    for language in pair.languages:
        language.hangs = True
        language.starts.clear()
    calls = [asyncio.create_task(pair.world.ask("?")) for _ in range(10)]
    await eventually(lambda: sum(len(language.starts) for language in pair.languages) == 10)
    assert [len(language.starts) for language in pair.languages] == [5, 5]
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("error", [DRAINING, FULL])
async def test_a_picture_a_replica_does_not_take_now_is_encoded_by_another(pair: Pair, error: TandemError) -> None:
    pair.visions[0].error = error
    for number in range(4):
        answer = await pair.world.ask(b"picture %d" % number, "What?")
        assert answer.finished.images[0].num_visual_tokens == 32
    assert pair.visions[0].num_encodes > 0


async def test_a_picture_that_is_refused_is_not_tried_elsewhere(pair: Pair) -> None:
    """It is the picture's fault, not the replica's."""
    before = pair.num_encodes
    for vision in pair.visions:
        vision.error = InvalidArgument("The picture is truncated.", reason="IMAGE_TRUNCATED")
    assert (await error_of(pair.world.ask(PICTURE, "What?"))).reason == "IMAGE_TRUNCATED"
    assert pair.num_encodes == before + 1


@pytest.mark.parametrize("error", [DRAINING, FULL])
async def test_a_prompt_is_replayed_while_no_token_has_come_and_pictures_are_not_encoded_again(
    pair: Pair, error: TandemError
) -> None:
    pair.say("Yes.")
    pair.languages[0].error = error
    before = pair.num_encodes
    answers = [await pair.world.ask("Look: ", PICTURE, "Red?") for _ in range(4)]
    assert [answer.text for answer in answers] == ["Yes."] * 4
    assert pair.num_encodes == before + 1
    assert len(pair.languages[0].starts) > 0


async def test_an_answer_that_has_begun_is_not_begun_again_and_ends_with_what_there_was(pair: Pair) -> None:
    pair.say("A red c")
    for language in pair.languages:
        language.late_error = DRAINING
        language.starts.clear()
    call = pair.world.stub.Generate(ask("What?", stop=["cup"]))
    texts: list[str] = []

    async def read() -> None:
        async for response in call:
            texts.append(response.delta.text)  # noqa: PERF401  (what came before the error counts)

    error = await error_of(read())
    assert "".join(texts) == "A red c"  # the last one, held back for the stop string, too
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_DRAINING")
    assert error.metadata["completion_tokens"] == "7"
    assert sum(len(language.starts) for language in pair.languages) == 1


@pytest.mark.parametrize("stage", ["vision", "language"])
async def test_a_replica_that_is_gone_costs_no_request(pair: Pair, stage: str) -> None:
    pair.say("Yes.")
    await pair.world.switches[stage].off()
    answers = [await pair.world.ask(b"picture %d" % number, "Red?") for number in range(6)]
    assert [answer.text for answer in answers] == ["Yes."] * 6


async def test_where_all_replicas_fail_the_last_error_is_the_answer(pair: Pair) -> None:
    for language in pair.languages:
        language.error = FULL
        language.starts.clear()
    error = await error_of(pair.world.ask("?"))
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 1)
    assert [len(language.starts) for language in pair.languages] == [1, 1]


async def test_where_one_replica_is_full_and_the_other_gone_the_client_is_told_to_come_again(pair: Pair) -> None:
    """In whatever order they were tried: the stage is there, and waiting helps."""
    pair.languages[1].error = FULL
    await pair.world.switches["language"].off()
    for _ in range(3):
        error = await error_of(pair.world.ask("?"))
        assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 1)


async def test_a_replica_with_other_weights_of_the_same_tag_is_not_asked_instead(pair: Pair) -> None:
    """Amid a deployment two processes may hold different models under one name."""
    pair.languages[1].info.half_digest = bytes(32)
    pair.languages[0].error = DRAINING
    pair.languages[1].starts.clear()
    await asyncio.sleep(2.2)  # the gateway asks every 2 s
    for _ in range(3):
        pair.languages[1].starts.clear()
        call = asyncio.create_task(pair.world.ask("?"))
        await asyncio.wait([call])
        assert (call.exception() is None) == (len(pair.languages[1].starts) == 1)


def make_endpoint(clock: Callable[[], float] = lambda: 0.0) -> Endpoint[Any]:
    return Endpoint("vision", "127.0.0.1:1", grpc.aio.insecure_channel("127.0.0.1:1"), object(), clock)


def fail(endpoint: Endpoint[Any], error: TandemError, tag: str = TAG) -> None:
    with pytest.raises(TandemError), endpoint.calling(tag):
        raise error


async def test_an_endpoint_that_keeps_failing_is_left_out_for_longer_each_time() -> None:
    now = 0.0
    endpoint = make_endpoint(lambda: now)
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        for _ in range(3):
            assert not endpoint.is_ejected(TAG)
            fail(endpoint, Internal("A bug."))
        now += seconds - 0.01
        assert endpoint.is_ejected(TAG)
        now += 0.02
    with endpoint.calling(TAG):
        pass
    for _ in range(3):
        fail(endpoint, Internal("A bug."))
    now += 1.01
    assert not endpoint.is_ejected(TAG)  # a success made it start over


async def test_what_is_the_requests_fault_does_not_count_against_an_endpoint() -> None:
    endpoint = make_endpoint()
    for _ in range(10):
        fail(endpoint, Internal("A bug."))
        fail(endpoint, Internal("A bug."))
        fail(endpoint, InvalidArgument("A bad picture."))
    assert not endpoint.is_ejected(TAG)
    assert endpoint.num_running == 0


async def test_a_model_that_keeps_failing_does_not_have_its_neighbours_left_out() -> None:
    """A broken canary and the stable model may share an endpoint, and successes of one tell nothing of the other."""
    endpoint = make_endpoint()
    for _ in range(3):
        fail(endpoint, Internal("A bug."), "canary-v1.1.0")
        with endpoint.calling(TAG):
            pass
    assert endpoint.is_ejected("canary-v1.1.0")
    assert not endpoint.is_ejected(TAG)


async def test_a_replica_too_busy_to_say_what_it_holds_is_asked_only_where_there_is_no_other(store: Path) -> None:
    """Late is not gone: when one of two is killed, the other gets twice the work and has no time for questions."""
    visions = [ScriptedVision(vision_info(store), []) for _ in range(2)]  # type: ignore[abstract]
    async with (
        Switch(visions[0], vision_pb2_grpc, "VisionService") as doomed,
        Switch(visions[1], vision_pb2_grpc, "VisionService") as busy,
    ):
        stage: Stage[Any] = Stage("vision", [doomed.address, busy.address], vision_pb2_grpc.VisionServiceStub)
        await stage.refresh()
        visions[1].is_too_busy = True
        for _ in range(3):
            await stage.refresh()
        found = [await stage.find(TAG) for _ in range(4)]
        assert {replica.endpoint.address for replica in found} == {doomed.address}
        await doomed.off()
        other = await stage.another(found[:1])
        assert other is not None
        assert other.endpoint.address == busy.address
        await stage.refresh()
        assert (await stage.find(TAG)).endpoint.address == busy.address
        await stage.close()


async def test_a_stage_that_was_gone_for_long_is_found_by_the_first_request_after_it_is_back(store: Path) -> None:
    """However long the waits between tries to connect had become; of several stages, each between other two tries."""
    async with AsyncExitStack() as stack:
        stages = []
        for _ in range(6):
            vision = ScriptedVision(vision_info(store), [])  # type: ignore[abstract]
            switch = await stack.enter_async_context(Switch(vision, vision_pb2_grpc, "VisionService"))
            stages.append((switch, Stage[Any]("vision", [switch.address], vision_pb2_grpc.VisionServiceStub)))
        for switch, stage in stages:
            await stage.refresh()
            await switch.off()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            await asyncio.gather(*(stage.refresh() for _, stage in stages))
            await asyncio.sleep(0.1)
        for switch, stage in stages:
            await switch.on()
            assert (await stage.find(TAG)).endpoint.address == switch.address
            await stage.close()


async def test_a_replica_that_was_too_busy_to_answer_once_is_asked_again_before_a_request_is_refused(
    store: Path,
) -> None:
    vision = ScriptedVision(vision_info(store), [])  # type: ignore[abstract]
    async with Switch(vision, vision_pb2_grpc, "VisionService") as switch:
        stage: Stage[Any] = Stage("vision", [switch.address], vision_pb2_grpc.VisionServiceStub)
        vision.is_too_busy = True
        finding = asyncio.create_task(stage.find(TAG))
        await asyncio.sleep(0.5)
        vision.is_too_busy = False
        assert (await finding).endpoint.address == switch.address
        await stage.close()


@asynccontextmanager
async def many_visions(store: Path, count: int) -> AsyncIterator[list[str]]:
    async with AsyncExitStack() as stack:
        addresses = []
        for _ in range(count):
            vision = ScriptedVision(vision_info(store), [])  # type: ignore[abstract]
            switch = await stack.enter_async_context(Switch(vision, vision_pb2_grpc, "VisionService"))
            addresses.append(switch.address)
        yield addresses


async def test_a_name_stands_for_whoever_it_leads_to_now(store: Path) -> None:
    """Pods of a headless service come and go."""
    async with many_visions(store, 3) as addresses:
        current = addresses[:2]

        async def resolve(name: str) -> list[str]:
            assert name == "vision.example:50051"
            return current

        stage: Stage[Any] = Stage(
            "vision", ["dns:///vision.example:50051"], vision_pb2_grpc.VisionServiceStub, resolve=resolve
        )
        found = {(await stage.find(TAG)).endpoint.address for _ in range(4)}
        assert found == set(addresses[:2])
        current = addresses[1:]
        await stage.refresh()
        assert {(await stage.find(TAG)).endpoint.address for _ in range(4)} == set(addresses[1:])
        await stage.close()


async def test_a_name_that_is_not_found_keeps_its_last_addresses(store: Path) -> None:
    async with many_visions(store, 1) as addresses:
        answers: list[list[str] | OSError] = [addresses, OSError(2, "no such name")]

        async def resolve(name: str) -> list[str]:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

        stage: Stage[Any] = Stage("vision", ["dns:///vision:1"], vision_pb2_grpc.VisionServiceStub, resolve=resolve)
        await stage.find(TAG)
        await stage.refresh()
        assert (await stage.find(TAG)).endpoint.address == addresses[0]
        await stage.close()


async def test_loopbacks_own_name_is_looked_up(store: Path) -> None:
    async with many_visions(store, 1) as addresses:
        port = addresses[0].rpartition(":")[2]
        stage: Stage[Any] = Stage("vision", [f"dns:///localhost:{port}"], vision_pb2_grpc.VisionServiceStub)
        assert (await stage.find(TAG)).info.state == model_pb2.MODEL_STATE_READY
        await stage.close()


async def test_an_ejected_endpoint_is_asked_where_there_is_no_other(store: Path) -> None:
    async with many_visions(store, 2) as addresses:
        stage: Stage[Any] = Stage("vision", addresses, vision_pb2_grpc.VisionServiceStub)
        first = await stage.find(TAG)
        for _ in range(3):
            fail(first.endpoint, Internal("A bug."))
        assert {(await stage.find(TAG)).endpoint.address for _ in range(4)} == set(addresses) - {first.endpoint.address}
        for endpoint in stage.endpoints:
            for _ in range(3):
                fail(endpoint, Internal("A bug."))
        assert {(await stage.find(TAG)).endpoint.address for _ in range(4)} == set(addresses)
        await stage.close()
