"""What a tenant may take of the gateway: places, requests and tokens, refused at once beyond that."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from prometheus_client import REGISTRY

from chassis.api_keys import authorization, new_key
from chassis.errors import Code
from tandem.v1 import gateway_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.keyed import asked, entry, refused
from tests.gateway.scripted import ask, eventually

KEY, OTHER_KEY, OPERATOR_KEY = new_key(), new_key(), new_key()


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"tandem_gateway_{name}")


async def test_a_tenants_places_and_queue_are_its_own(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(entry("small", KEY, max_running=1, max_waiting=1), entry("other", OTHER_KEY))
    async with make_world(keys=keys) as world:
        world.say("Yes.")
        world.language.hangs = True
        first = asyncio.create_task(asked(world, KEY, "First?"))
        await eventually(lambda: world.language.num_running == 1)
        waiting = asyncio.create_task(asked(world, KEY, "Second?"))
        await eventually(lambda: gauge("waiting") == 1)
        error = await refused(asked(world, KEY, "Third?"))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_BUSY")
        assert error.retry_after_s is not None
        world.language.hangs = False
        assert (await asked(world, OTHER_KEY, "Fourth?")).text == "Yes."
        first.cancel()
        assert (await waiting).text == "Yes."


async def test_the_gateways_places_hold_for_all_together(make_world: MakeWorld) -> None:
    async with make_world(max_running=2, max_waiting=0) as world:
        world.language.hangs = True
        calls = [asyncio.create_task(world.ask("?")) for _ in range(2)]
        await eventually(lambda: world.language.num_running == 2)
        assert (await refused(world.ask("?"))).reason == "GATEWAY_BUSY"
        for call in calls:
            call.cancel()
        await eventually(lambda: world.language.num_running == 0)
        world.language.hangs = False
        await world.ask("?")


async def test_large_requests_are_refused_where_the_queue_still_has_places_but_memory_has_not(
    make_world: MakeWorld,
) -> None:
    """A queue bounded by number alone holds any amount: hundreds of images of twenty megabytes."""
    limits = {"max_message_bytes": 2**20, "max_request_bytes": 2**20}
    async with make_world(max_running=1, max_waiting=100, **limits) as world:
        world.language.hangs = True
        calls = [asyncio.create_task(world.ask(bytes(500_000), "?")) for _ in range(2)]  # one runs, one waits
        await eventually(lambda: world.language.num_running == 1 and gauge("waiting") == 1)
        error = await refused(world.ask(bytes(500_000), "?"))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "BYTES_BUSY")
        assert error.retry_after_s is not None
        for call in calls:
            call.cancel()
        await eventually(lambda: world.language.num_running == 0)
        world.language.hangs = False
        await world.ask(bytes(500_000), "?")


async def test_requests_a_minute_are_counted_over_all_calls(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    async with make_world(keys=write_keys(entry("acme", KEY, requests_per_minute=3))) as world:
        metadata = [authorization(KEY)]
        await asked(world, KEY, "?")
        await world.stub.PutImage(iter([gateway_pb2.PutImageRequest(chunk=b"x")]), metadata=metadata)
        count = gateway_pb2.CountTokensRequest(messages=ask("?").messages)
        await world.stub.CountTokens(count, metadata=metadata)
        error = await refused(asked(world, KEY, "?"))
        assert error.reason == "REQUEST_RATE"
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= 20


async def test_tokens_of_prompts_and_answers_are_paid_before_the_next_request(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    async with make_world(keys=write_keys(entry("acme", KEY, tokens_per_minute=60))) as world:
        world.say("a long answer, far beyond what is left of sixty tokens, which is let through and paid back later")
        first = await asked(world, KEY, "?")
        used = first.finished.usage.prompt_tokens + first.finished.usage.completion_tokens
        num_starts = len(world.language.starts)
        error = await refused(asked(world, KEY, "?"))
        assert error.reason == "TOKEN_RATE"
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= used - 60  # one token a second flows back, since the first request, too
        assert len(world.language.starts) == num_starts


async def test_what_the_model_made_beyond_a_stop_string_is_not_paid(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """Several tokens may come in one message, and what is paid is what the answer says it took."""
    async with make_world(keys=write_keys(entry("thrifty", KEY))) as world:
        world.say("ok STOP and on and on")
        world.language.tokens_a_message = 100
        usage = (await asked(world, KEY, "?", stop=["STOP"])).finished.usage
        labels = {"tenant": "thrifty", "kind": "answer"}
        assert REGISTRY.get_sample_value("tandem_gateway_tenant_tokens_total", labels) == usage.completion_tokens == 7


async def test_longest_prompt_and_answer_are_settings(make_world: MakeWorld) -> None:
    async with make_world(max_prompt_tokens=60, max_output_tokens=50) as world:
        assert (await refused(world.ask("?", sampling={"max_tokens": 51}))).reason == "ANSWER_TOO_LONG"
        assert (await refused(world.ask("word " * 20))).reason == "PROMPT_TOO_LONG"
        await world.ask("?")
        await world.ask("?", sampling={"max_tokens": 7})
        assert [start.sampling.max_tokens for start in world.language.starts] == [50, 7]
