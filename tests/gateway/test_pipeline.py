"""Requests through a real gateway with scripted stages."""

import asyncio
from typing import Any

import pytest

from chassis.errors import Code, InvalidArgument, ResourceExhausted
from tandem.v1 import gateway_pb2, language_pb2, model_pb2, sampling_pb2, tensor_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.scripted import Answer, World, ask, error_of, eventually, read

# Any bytes will do, because the gateway does not decode images.
IMAGE, OTHER_IMAGE = b"an image", b"another image"


async def generate(world: World, request: gateway_pb2.GatewayGenerateRequest, **options: Any) -> Answer:
    return await read(world.stub.Generate(request, **options))


async def test_text_before_an_image_is_prefilled_while_the_image_is_encoded(world: World) -> None:
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


@pytest.mark.parametrize(
    ("takes_whole_prompts", "events"), [(True, ["whole", "prompt ends"]), (False, ["start", "text", "prompt ends"])]
)
async def test_a_prompt_of_one_text_is_one_message_where_the_stage_takes_that(
    make_world: MakeWorld, takes_whole_prompts: bool, events: list[str]
) -> None:
    async with make_world(takes_whole_prompts=takes_whole_prompts) as world:
        world.say("Hello.")
        answer = await world.ask("Hi.", sampling=sampling_pb2.SamplingOptions(max_tokens=9))
        assert (answer.text, world.events) == ("Hello.", events)
        assert world.language.starts[-1].sampling.max_tokens == 9


async def test_images_of_one_request_are_encoded_concurrently(world: World) -> None:
    world.vision.go.clear()
    call = asyncio.create_task(world.ask(IMAGE, OTHER_IMAGE, "Which is larger?"))
    await eventually(lambda: world.vision.num_encodes == 2)
    world.vision.go.set()
    answer = await call
    assert answer.finished.usage.visual_tokens == 64
    assert [image.num_visual_tokens for image in answer.finished.images] == [32, 32]


async def test_a_second_question_about_an_image_is_a_cache_hit(world: World) -> None:
    first = await world.ask(IMAGE, "What is it?")
    second = await world.ask(IMAGE, "What colour is it?")
    assert world.vision.num_encodes == 1
    levels = [answer.finished.images[0].cache_level for answer in (first, second)]
    assert levels == [gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_GATEWAY]


async def test_an_image_in_many_concurrent_requests_is_encoded_once(world: World) -> None:
    world.vision.go.clear()
    calls = [asyncio.create_task(world.ask(IMAGE, f"Question {index}?")) for index in range(20)]
    await eventually(lambda: world.events.count("start") == 20)
    world.vision.go.set()
    answers = await asyncio.gather(*calls)
    assert world.vision.num_encodes == 1
    levels = [answer.finished.images[0].cache_level for answer in answers]
    assert levels.count(gateway_pb2.CACHE_LEVEL_MISS) == 1


async def test_a_cancelled_request_does_not_cancel_an_encoding_that_others_share(world: World) -> None:
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


async def test_a_cancelled_call_cancels_both_stages(world: World) -> None:
    world.vision.go.clear()
    call = asyncio.create_task(world.ask(IMAGE, "What is it?"))
    await eventually(lambda: world.vision.num_encodes == 1 and world.language.num_running == 1)
    call.cancel()
    await eventually(lambda: world.vision.num_cancelled == 1 and world.language.num_running == 0)


async def test_a_call_cancelled_during_the_answer_cancels_the_decoder(world: World) -> None:
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


async def test_no_request_outlives_the_longest_deadline(make_world: MakeWorld) -> None:
    async with make_world(max_deadline_s=0.2) as world:
        world.language.hangs = True
        error = await error_of(generate(world, ask("Go on."), timeout=60))
        assert error.code == Code.DEADLINE_EXCEEDED
        await eventually(lambda: world.language.num_running == 0)


async def test_chinese_text_streams_in_whole_characters(world: World) -> None:
    """The tiny tokenizer splits every Chinese character into three tokens."""
    world.say("红色的杯子，好看！")
    answer = await world.ask("这是什么？")
    assert answer.pieces == list("红色的杯子，好看！")
    assert answer.finished.usage.completion_tokens == 27


async def test_a_stop_string_ends_the_answer_and_cancels_the_decoder(world: World) -> None:
    world.say("A red cup.\n\nUser: more")
    world.language.hangs = True
    answer = await world.ask("What is it?", stop=["\n\nUser:", "never"])
    assert answer.text == "A red cup."
    assert answer.finished.finish_reason == sampling_pb2.FINISH_REASON_STOP
    assert answer.finished.usage.completion_tokens == len("A red cup.\n\nUser:")
    await eventually(lambda: world.language.num_running == 0)


async def test_an_answer_ended_by_a_stop_string_reports_prefill_usage_and_timings(world: World) -> None:
    """The last message, which normally has them, never arrives."""
    world.say("A red cup. END And more.")
    world.language.hangs = True
    world.language.prefilled = language_pb2.Prefilled(cached_prompt_tokens=16, queue_ms=2.5, prefill_ms=7.5)
    finished = (await world.ask("What is it?", stop=["END"])).finished
    assert finished.usage.cached_prompt_tokens == 16
    assert (finished.timings.queue_ms, finished.timings.prefill_ms) == (2.5, 7.5)


async def test_logprobs_arrive_with_their_text(world: World) -> None:
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


async def test_an_error_of_the_encoder_names_the_images_field(world: World) -> None:
    world.vision.error = InvalidArgument("The image is truncated.", reason="BAD_IMAGE", field="image")
    error = await error_of(generate(world, ask("Look: ", IMAGE, "What is it?")))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_IMAGE")
    assert error.field == "messages[0].parts[1].image"
    await eventually(lambda: world.language.num_running == 0)
    world.vision.error = None
    await world.ask(IMAGE, "And now?")


async def test_an_error_of_the_decoder_reaches_the_client_while_the_prompt_is_still_being_sent(world: World) -> None:
    """The failed write must not hide the error's reason."""
    world.language.error = ResourceExhausted("The queue is full.", reason="QUEUE_FULL", retry_after_s=2)
    for _ in range(20):
        error = await error_of(generate(world, ask("a", IMAGE, "b", OTHER_IMAGE, "c?")))
        assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 2)


async def test_an_error_of_the_decoder_stops_the_encoder(world: World) -> None:
    world.vision.go.clear()
    world.language.error = ResourceExhausted("The queue is full.", reason="QUEUE_FULL")
    await error_of(generate(world, ask(IMAGE, "What is it?")))
    await eventually(lambda: world.vision.num_cancelled == world.vision.num_encodes)


@pytest.mark.parametrize("stage", ["vision", "language"])
async def test_an_unreachable_stage_is_reported_as_unavailable_without_its_address(world: World, stage: str) -> None:
    await world.stage_servers[stage].stop()
    error = await error_of(generate(world, ask(IMAGE, "What is it?")))
    assert error.code == Code.UNAVAILABLE
    assert error.message == f"The {stage} service cannot be reached."
    assert error.retry_after_s is not None


async def test_text_is_answered_while_the_vision_stage_is_down(world: World) -> None:
    await world.stage_servers["vision"].stop()
    world.say("Yes.")
    assert (await world.ask("Are you there?")).text == "Yes."


async def test_a_release_of_mismatched_halves_is_refused_and_not_ready(world: World) -> None:
    world.vision.info.half_digest = bytes(32)
    error = await error_of(generate(world, ask(IMAGE, "What is it?")))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RELEASE_MISMATCH")
    models = await world.stub.ListModels(gateway_pb2.GatewayListModelsRequest())
    assert [release.ready for release in models.releases] == [False]


async def test_a_tokenizer_other_than_the_stages_is_refused(world: World) -> None:
    """A decoder misreads token ids of another tokenizer."""
    world.language.info.language.tokenizer_digest = bytes(32)
    error = await error_of(generate(world, ask("What is it?")))
    assert error.reason == "RELEASE_MISMATCH"


async def test_a_loading_model_is_unavailable(world: World) -> None:
    world.language.info.state = model_pb2.MODEL_STATE_LOADING
    error = await error_of(generate(world, ask("What is it?")))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "MODEL_LOADING")
    world.language.info.state = model_pb2.MODEL_STATE_READY
    await world.ask("And now?")


async def test_visual_tokens_of_another_encoder_are_neither_used_nor_cached(world: World) -> None:
    def swap(tokens: tensor_pb2.VisualTokens) -> None:
        tokens.visual_key = bytes(32)

    world.vision.change = swap
    error = await error_of(generate(world, ask(IMAGE, "What is it?")))
    assert error.reason == "ENCODER_CHANGED"
    world.vision.change = lambda tokens: None
    answer = await world.ask(IMAGE, "What is it?")
    assert answer.finished.images[0].cache_level == gateway_pb2.CACHE_LEVEL_MISS


async def test_visual_tokens_that_are_not_finite_are_refused(world: World) -> None:
    def spoil(tokens: tensor_pb2.VisualTokens) -> None:
        tokens.embeddings.data = b"\xff" * len(tokens.embeddings.data)

    world.vision.change = spoil
    error = await error_of(generate(world, ask(IMAGE, "What is it?")))
    assert (error.code, error.reason) == (Code.INTERNAL, "BAD_TENSOR")


async def test_a_release_can_be_pinned_by_its_tag_and_an_unknown_tag_is_not_found(world: World) -> None:
    known = await read(world.stub.Generate(ask("?"), metadata=(("x-tandem-release", "tiny-v1.0.0"),)))
    assert known.finished.release.language_tag == "tiny-v1.0.0"
    error = await error_of(generate(world, ask("?"), metadata=(("x-tandem-release", "tiny-v9.0.0"),)))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "UNKNOWN_RELEASE")


async def test_an_uploaded_image_can_be_sent_by_digest(world: World) -> None:
    chunks = [gateway_pb2.PutImageRequest(chunk=IMAGE[:4]), gateway_pb2.PutImageRequest(chunk=IMAGE[4:])]
    put = await world.stub.PutImage(iter(chunks))
    assert put.num_bytes == len(IMAGE)
    request = ask("What is it?")
    request.messages[0].parts.add(image=gateway_pb2.Image(sha256=put.sha256))
    answer = await read(world.stub.Generate(request))
    assert answer.finished.images[0].sha256 == put.sha256
    assert (await world.ask(IMAGE, "?")).finished.images[0].cache_level == gateway_pb2.CACHE_LEVEL_GATEWAY
