"""Limits on slots, bytes, requests and tokens."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from prometheus_client import REGISTRY

from chassis.api_keys import authorization, new_key
from chassis.errors import Code
from tandem.v1 import gateway_pb2
from tests.gateway.api_keys import ask_with_key, tenant_entry
from tests.gateway.conftest import MakeWorld
from tests.gateway.scripted import ask, error_of, eventually

KEY, OTHER_KEY = new_key(), new_key()


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"tandem_gateway_{name}")


async def test_each_tenant_has_its_own_slots_and_queue(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(tenant_entry("small", KEY, max_running=1, max_waiting=1), tenant_entry("other", OTHER_KEY))
    async with make_world(keys=keys) as world:
        world.say("Yes.")
        world.language.hangs = True
        first = asyncio.create_task(ask_with_key(world, KEY, "First?"))
        await eventually(lambda: world.language.num_running == 1)
        waiting = asyncio.create_task(ask_with_key(world, KEY, "Second?"))
        await eventually(lambda: gauge("waiting") == 1)
        error = await error_of(ask_with_key(world, KEY, "Third?"))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "TENANT_BUSY")
        assert error.retry_after_s is not None
        world.language.hangs = False
        assert (await ask_with_key(world, OTHER_KEY, "Fourth?")).text == "Yes."
        first.cancel()
        assert (await waiting).text == "Yes."


async def test_the_gateways_slots_are_shared_by_all_tenants(make_world: MakeWorld) -> None:
    async with make_world(max_running=2, max_waiting=0) as world:
        world.language.hangs = True
        calls = [asyncio.create_task(world.ask("?")) for _ in range(2)]
        await eventually(lambda: world.language.num_running == 2)
        assert (await error_of(world.ask("?"))).reason == "GATEWAY_BUSY"
        for call in calls:
            call.cancel()
        await eventually(lambda: world.language.num_running == 0)
        world.language.hangs = False
        await world.ask("?")


async def test_large_requests_are_refused_when_the_bytes_are_used_up_though_the_queue_has_room(
    make_world: MakeWorld,
) -> None:
    """A queue of many large images would exhaust the memory."""
    limits = {"max_message_bytes": 2**20, "max_request_bytes": 2**20}
    async with make_world(max_running=1, max_waiting=100, **limits) as world:
        world.language.hangs = True
        calls = [asyncio.create_task(world.ask(bytes(500_000), "?")) for _ in range(2)]  # one runs, one waits
        await eventually(lambda: world.language.num_running == 1 and gauge("waiting") == 1)
        error = await error_of(world.ask(bytes(500_000), "?"))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "BYTES_BUSY")
        assert error.retry_after_s is not None
        for call in calls:
            call.cancel()
        await eventually(lambda: world.language.num_running == 0)
        world.language.hangs = False
        await world.ask(bytes(500_000), "?")


async def test_the_request_rate_counts_all_kinds_of_calls(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    async with make_world(keys=write_keys(tenant_entry("acme", KEY, requests_per_minute=3))) as world:
        metadata = [authorization(KEY)]
        await ask_with_key(world, KEY, "?")
        await world.stub.PutImage(iter([gateway_pb2.PutImageRequest(chunk=b"x")]), metadata=metadata)
        count = gateway_pb2.CountTokensRequest(messages=ask("?").messages)
        await world.stub.CountTokens(count, metadata=metadata)
        error = await error_of(ask_with_key(world, KEY, "?"))
        assert error.reason == "REQUEST_RATE"
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= 20


async def test_a_token_debt_delays_the_next_request(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    async with make_world(keys=write_keys(tenant_entry("acme", KEY, tokens_per_minute=60))) as world:
        world.say("a long answer, far beyond what is left of sixty tokens, which is let through and paid back later")
        first = await ask_with_key(world, KEY, "?")
        used = first.finished.usage.prompt_tokens + first.finished.usage.completion_tokens
        num_starts = len(world.language.starts)
        error = await error_of(ask_with_key(world, KEY, "?"))
        assert error.reason == "TOKEN_RATE"
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= used - 60  # one token per second is refilled, since the first request
        assert len(world.language.starts) == num_starts


async def test_tokens_after_a_stop_string_are_not_charged(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """The charge equals the usage of the answer."""
    async with make_world(keys=write_keys(tenant_entry("thrifty", KEY))) as world:
        world.say("ok STOP and on and on")
        world.language.tokens_per_message = 100
        usage = (await ask_with_key(world, KEY, "?", stop=["STOP"])).finished.usage
        labels = {"tenant": "thrifty", "kind": "answer"}
        assert REGISTRY.get_sample_value("tandem_gateway_tenant_tokens_total", labels) == usage.completion_tokens == 7


async def test_the_settings_limit_prompts_and_answers(make_world: MakeWorld) -> None:
    async with make_world(max_prompt_tokens=60, max_output_tokens=50) as world:
        assert (await error_of(world.ask("?", sampling={"max_tokens": 51}))).reason == "ANSWER_TOO_LONG"
        assert (await error_of(world.ask("word " * 20))).reason == "PROMPT_TOO_LONG"
        await world.ask("?")
        await world.ask("?", sampling={"max_tokens": 7})
        assert [start.sampling.max_tokens for start in world.language.starts] == [50, 7]
