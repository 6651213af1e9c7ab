"""The steps of a request over real sockets, with stages that wait, fail and answer on demand."""

import asyncio
from typing import Any

import grpc
import pytest

from chassis.errors import Code, InvalidArgument, ResourceExhausted
from chassis.grpc_errors import from_rpc_error
from tandem.v1 import gateway_pb2, language_pb2, model_pb2, sampling_pb2, tensor_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.scripted import World, ask, eventually, read

# The gateway looks at an image's bytes no closer than this.
IMAGE, OTHER_IMAGE = b"an image", b"another image"


async def error_of(call: Any) -> Any:
    with pytest.raises(grpc.RpcError) as raised:
        await (read(call) if hasattr(call, "read") else call)
    return from_rpc_error(raised.value)


async def test_text_before_an_image_reaches_the_decoder_while_the_image_is_encoded(world: World) -> None:
    """That overlap is what the order of the steps is for."""
    world.vision.go.clear()
    call = asyncio.create_task(world.ask("Look: ", IMAGE, "What is it?"))
    await eventually(lambda: world.events.count("text") == 1 and "encode begins" in world.events)
    await asyncio.sleep(0.05)
    assert "image" not in world.events
    world.vision.go.set()
    await call
    assert [event for event in world.events if not event.startswith("encode")] == [
        "start",
        "text",
        "image",
        "text",
        "prompt ends",
    ]


async def test_images_of_one_request_are_encoded_side_by_side(world: World) -> None:
    world.vision.go.clear()
    call = asyncio.create_task(world.ask(IMAGE, OTHER_IMAGE, "Which is larger?"))
    await eventually(lambda: world.vision.num_encodes == 2)
    world.vision.go.set()
    answer = await call
    assert answer.finished.usage.visual_tokens == 64
    assert [image.num_visual_tokens for image in answer.finished.images] == [32, 32]


async def test_a_second_question_about_an_image_needs_no_encoder(world: World) -> None:
    first = await world.ask(IMAGE, "What is it?")
    second = await world.ask(IMAGE, "What colour is it?")
    assert world.vision.num_encodes == 1
    levels = [answer.finished.images[0].cache_level for answer in (first, second)]
    assert levels == [gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_GATEWAY]


async def test_an_image_asked_by_many_at_once_is_encoded_once(world: World) -> None:
    world.vision.go.clear()
    calls = [asyncio.create_task(world.ask(IMAGE, f"Question {index}?")) for index in range(20)]
    await eventually(lambda: world.events.count("start") == 20)
    world.vision.go.set()
    answers = await asyncio.gather(*calls)
    assert world.vision.num_encodes == 1
    levels = [answer.finished.images[0].cache_level for answer in answers]
    assert levels.count(gateway_pb2.CACHE_LEVEL_MISS) == 1


async def test_one_of_many_who_leaves_does_not_take_the_image_from_the_others(world: World) -> None:
    world.vision.go.clear()
    first = asyncio.create_task(world.ask(IMAGE, "First?"))
    await eventually(lambda: world.vision.num_encodes == 1)
    second = asyncio.create_task(world.ask(IMAGE, "Second?"))
    await eventually(lambda: world.events.count("start") == 2)
    first.cancel()
    await eventually(lambda: world.language.num_running == 1)
    world.vision.go.set()
    await second
    assert (world.vision.num_encodes, world.vision.num_cancelled) == (1, 0)


async def test_a_client_that_leaves_cancels_both_stages(world: World) -> None:
    world.vision.go.clear()
    call = asyncio.create_task(world.ask(IMAGE, "What is it?"))
    await eventually(lambda: world.vision.num_encodes == 1 and world.language.num_running == 1)
    call.cancel()
    await eventually(lambda: world.vision.num_cancelled == 1 and world.language.num_running == 0)


async def test_a_client_that_leaves_amid_the_answer_cancels_it(world: World) -> None:
    world.say("An answer that never")
    world.language.hangs = True
    call = world.stub.Generate(ask("Go on."))
    await call.read()
    assert world.language.num_running == 1
    call.cancel()
    await eventually(lambda: world.language.num_running == 0)


async def test_the_clients_deadline_reaches_both_stages(world: World) -> None:
    await read(world.stub.Generate(ask(IMAGE, "What is it?"), timeout=60))
    for deadline_s in (*world.vision.deadlines_s, *world.language.deadlines_s):
        assert 30 < deadline_s <= 60


async def test_no_request_takes_longer_than_the_longest_deadline(make_world: MakeWorld) -> None:
    async with make_world(max_deadline_s=0.2) as world:
        world.language.hangs = True
        error = await error_of(world.stub.Generate(ask("Go on."), timeout=60))
        assert error.code == Code.DEADLINE_EXCEEDED
        await eventually(lambda: world.language.num_running == 0)


async def test_chinese_streams_character_by_character_without_broken_ones(world: World) -> None:
    """The tiny tokenizer cuts every Chinese character into three tokens."""
    world.say("红色的杯子，好看！")
    answer = await world.ask("这是什么？")
    assert answer.pieces == list("红色的杯子，好看！")
    assert answer.finished.usage.completion_tokens == 27


async def test_a_stop_string_ends_the_answer_and_frees_the_decoder(world: World) -> None:
    world.say("A red cup.\n\nUser: more")
    world.language.hangs = True
    answer = await world.ask("What is it?", stop=["\n\nUser:", "never"])
    assert answer.text == "A red cup."
    assert answer.finished.finish_reason == sampling_pb2.FINISH_REASON_STOP
    assert answer.finished.usage.completion_tokens == len("A red cup.\n\nUser:")
    await eventually(lambda: world.language.num_running == 0)


async def test_a_stop_string_does_not_lose_what_the_prompt_took(world: World) -> None:
    """The call is cancelled before its last message, which would have said so."""
    world.say("A red cup. END And more.")
    world.language.hangs = True
    world.language.prefilled = language_pb2.Prefilled(cached_prompt_tokens=16, queue_ms=2.5, prefill_ms=7.5)
    finished = (await world.ask("What is it?", stop=["END"])).finished
    assert finished.usage.cached_prompt_tokens == 16
    assert (finished.timings.queue_ms, finished.timings.prefill_ms) == (2.5, 7.5)


async def test_logprobs_travel_with_the_text_they_belong_to(world: World) -> None:
    world.say("好ok")
    answer = await world.ask("?", sampling=sampling_pb2.SamplingOptions(num_logprobs=0))
    assert [entry.chosen.token_id for entry in answer.logprobs] == list(world.language.answer)


async def test_usage_and_timings_add_up(world: World) -> None:
    world.say("Yes.")
    answer = await world.ask("Look: ", IMAGE, "Is it red?")
    counted = await world.stub.CountTokens(
        gateway_pb2.CountTokensRequest(messages=ask("Look: ", IMAGE, "Is it red?").messages)
    )
    usage, timings = answer.finished.usage, answer.finished.timings
    assert usage.prompt_tokens == counted.prompt_tokens
    assert usage.visual_tokens == counted.visual_tokens == 32
    assert counted.prompt_tokens + counted.remaining_tokens == 1024
    assert 0 < timings.prepare_ms <= timings.vision_ms <= timings.first_token_ms
    assert timings.first_token_ms + timings.decode_ms <= timings.total_ms
    assert answer.finished.images[0].ready_ms == timings.vision_ms


async def test_an_error_of_the_encoder_names_the_place_of_the_image(world: World) -> None:
    world.vision.error = InvalidArgument("The image is truncated.", reason="BAD_IMAGE", field="image")
    error = await error_of(world.stub.Generate(ask("Look: ", IMAGE, "What is it?")))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_IMAGE")
    assert error.field == "messages[0].parts[1].image"
    await eventually(lambda: world.language.num_running == 0)
    world.vision.error = None
    await world.ask(IMAGE, "And now?")


async def test_an_error_of_the_decoder_passes_on_while_the_prompt_is_still_being_sent(world: World) -> None:
    """The call ends under the feeder's hands, which must not hide why."""
    world.language.error = ResourceExhausted("The queue is full.", reason="QUEUE_FULL", retry_after_s=2)
    for _ in range(20):
        error = await error_of(world.stub.Generate(ask("a", IMAGE, "b", OTHER_IMAGE, "c?")))
        assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 2)


async def test_an_error_of_the_decoder_stops_the_encoder(world: World) -> None:
    world.vision.go.clear()
    world.language.error = ResourceExhausted("The queue is full.", reason="QUEUE_FULL")
    await error_of(world.stub.Generate(ask(IMAGE, "What is it?")))
    await eventually(lambda: world.vision.num_cancelled == world.vision.num_encodes)


@pytest.mark.parametrize("stage", ["vision", "language"])
async def test_a_stage_that_is_gone_is_unavailable_and_says_so_without_an_address(world: World, stage: str) -> None:
    await world.switches[stage].off()
    error = await error_of(world.stub.Generate(ask(IMAGE, "What is it?")))
    assert error.code == Code.UNAVAILABLE
    assert error.message == f"The {stage} service cannot be reached."
    assert error.retry_after_s is not None


async def test_text_is_answered_while_the_vision_stage_is_gone(world: World) -> None:
    await world.switches["vision"].off()
    world.say("Yes.")
    assert (await world.ask("Are you there?")).text == "Yes."


async def test_a_pair_that_does_not_fit_is_refused_and_not_ready(world: World) -> None:
    world.vision.info.half_digest = bytes(32)
    error = await error_of(world.stub.Generate(ask(IMAGE, "What is it?")))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RELEASE_MISMATCH")
    models = await world.stub.ListModels(gateway_pb2.GatewayListModelsRequest())
    assert [release.ready for release in models.releases] == [False]


async def test_another_tokenizer_than_the_stages_is_refused(world: World) -> None:
    """Ids of one tokenizer mean nothing to a decoder trained with another."""
    world.language.info.language.tokenizer_digest = bytes(32)
    error = await error_of(world.stub.Generate(ask("What is it?")))
    assert error.reason == "RELEASE_MISMATCH"


async def test_a_model_that_is_loading_is_a_reason_to_come_again(world: World) -> None:
    world.language.info.state = model_pb2.MODEL_STATE_LOADING
    error = await error_of(world.stub.Generate(ask("What is it?")))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "MODEL_LOADING")
    world.language.info.state = model_pb2.MODEL_STATE_READY
    await world.ask("And now?")


async def test_visual_tokens_of_another_encoder_are_neither_used_nor_kept(world: World) -> None:
    def swap(tokens: tensor_pb2.VisualTokens) -> None:
        tokens.visual_key = bytes(32)

    world.vision.change = swap
    error = await error_of(world.stub.Generate(ask(IMAGE, "What is it?")))
    assert error.reason == "ENCODER_CHANGED"
    world.vision.change = lambda tokens: None
    answer = await world.ask(IMAGE, "What is it?")
    assert answer.finished.images[0].cache_level == gateway_pb2.CACHE_LEVEL_MISS


async def test_visual_tokens_that_are_not_finite_are_neither_used_nor_kept(world: World) -> None:
    def spoil(tokens: tensor_pb2.VisualTokens) -> None:
        tokens.embeddings.data = b"\xff" * len(tokens.embeddings.data)

    world.vision.change = spoil
    error = await error_of(world.stub.Generate(ask(IMAGE, "What is it?")))
    assert (error.code, error.reason) == (Code.INTERNAL, "BAD_TENSOR")


async def test_a_release_is_pinned_by_its_tag_and_an_unknown_one_is_not_found(world: World) -> None:
    known = await read(world.stub.Generate(ask("?"), metadata=(("x-tandem-release", "tiny-v1.0.0"),)))
    assert known.finished.release.language_tag == "tiny-v1.0.0"
    error = await error_of(world.stub.Generate(ask("?"), metadata=(("x-tandem-release", "tiny-v9.0.0"),)))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "UNKNOWN_RELEASE")


async def test_an_image_put_before_is_named_by_its_digest(world: World) -> None:
    chunks = [gateway_pb2.PutImageRequest(chunk=IMAGE[:4]), gateway_pb2.PutImageRequest(chunk=IMAGE[4:])]
    put = await world.stub.PutImage(iter(chunks))
    assert put.num_bytes == len(IMAGE)
    request = ask("What is it?")
    request.messages[0].parts.add(image=gateway_pb2.Image(sha256=put.sha256))
    answer = await read(world.stub.Generate(request))
    assert answer.finished.images[0].sha256 == put.sha256
    assert (await world.ask(IMAGE, "?")).finished.images[0].cache_level == gateway_pb2.CACHE_LEVEL_GATEWAY
