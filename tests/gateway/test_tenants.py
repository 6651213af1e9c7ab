"""Keys and what their tenants may do, over real sockets."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.api_keys import authorization, key_sha256, new_key, shown_key
from chassis.errors import FailedPrecondition, InvalidArgument, TandemError, Unauthenticated, from_rpc_error
from gateway.settings import GatewaySettings
from gateway.tenants import Callers, read_tenants
from tandem.client_async import AsyncClient
from tandem.commands import app
from tandem.v1 import gateway_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.scripted import World, ask, eventually, read

KEY, OTHER_KEY, OPERATOR_KEY = new_key(), new_key(), new_key()
PICTURE = b"a picture"


def entry(name: str, *keys: str, **fields: Any) -> str:
    """Return one tenant as the key file has it."""
    values = {"name": name, "key_sha256": [key_sha256(key) for key in keys], **fields}
    return "[[tenants]]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in values.items())


@pytest.fixture
def write_keys(tmp_path: Path) -> Callable[..., Path]:
    """Return `write_keys(entries...)`, which writes the key file and returns its path."""

    def write(*entries: str) -> Path:
        path = tmp_path / "keys.toml"
        path.write_text("".join(entries))
        return path

    return write


async def asked(world: World, key: str, *parts: str | bytes, **options: Any) -> Any:
    return await read(world.stub.Generate(ask(*parts, **options), metadata=[authorization(key)]))


async def refused(call: Awaitable[Any]) -> TandemError:
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return from_rpc_error(raised.value)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "NO_API_KEY"),
        ([authorization(new_key())], "UNKNOWN_API_KEY"),
        ([("authorization", KEY)], "BAD_AUTHORIZATION"),
        ([authorization(KEY), authorization(OTHER_KEY)], "BAD_AUTHORIZATION"),
        ([("authorization", f"Basic {KEY}")], "BAD_AUTHORIZATION"),
    ],
)
async def test_every_call_needs_a_good_key_and_no_error_repeats_one(
    metadata: list[tuple[str, str]], reason: str, make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """Every method of the contract is tried, so that a new one cannot be forgotten."""
    async with make_world(keys=write_keys(entry("acme", KEY))) as world:
        service = gateway_pb2.DESCRIPTOR.services_by_name["Gateway"]
        for method in service.methods:
            request = (
                gateway_pb2.PutImageRequest()
                if method.client_streaming
                else getattr(gateway_pb2, method.input_type.name)()
            )
            call = getattr(world.stub, method.name)(
                iter([request]) if method.client_streaming else request, metadata=metadata
            )
            error = await refused(call.read() if method.server_streaming else call)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
            assert not any(key in error.message for key in (KEY, OTHER_KEY))
        assert (await asked(world, KEY, "Hi.")).finished


async def test_a_changed_file_counts_without_a_restart_and_a_bad_one_changes_nothing(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    path = write_keys(entry("acme", KEY))
    async with make_world(keys=path, refresh_s=0.02) as world:
        write_keys(entry("acme", OTHER_KEY))
        await eventually_known(world, OTHER_KEY)
        assert (await refused(asked(world, KEY, "Hi."))).reason == "UNKNOWN_API_KEY"
        path.write_text(f'[[tenants]]\nname = "acme"\nkey_sha256 = ["{KEY}"]')
        await asyncio.sleep(0.2)
        await asked(world, OTHER_KEY, "Hi.")


async def eventually_known(world: World, key: str) -> None:
    async with asyncio.timeout(3):
        while True:
            try:
                await asked(world, key, "Hi.")
            except grpc.RpcError:
                await asyncio.sleep(0.02)
            else:
                return


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (f'tenants = [{{name = "a", key_sha256 = ["{KEY}"]}}]', "tenants.0.key_sha256.0"),
        (entry("a", KEY, max_runing=3), "max_runing"),
        (entry("a", KEY, cache_salt="é" * 40), "cache_salt"),
        (entry("a\nb", KEY), "tenants.0.name"),
        (entry("a", KEY) + entry("b", KEY), "twice"),
        (entry("a", KEY) + entry("a", OTHER_KEY), "same name"),
        (entry("a"), "key_sha256"),
        (KEY, "not TOML"),
        ("", "tenants"),
    ],
)
def test_a_bad_file_is_refused_by_place_without_its_content(
    content: str, place: str, write_keys: Callable[..., Path]
) -> None:
    """Somebody will paste a key where its digest belongs."""
    with pytest.raises(FailedPrecondition) as raised:
        read_tenants(write_keys(content))
    assert place in raised.value.message
    assert KEY not in raised.value.message


async def test_a_tenants_places_and_queue_are_its_own(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(entry("small", KEY, max_running=1, max_waiting=1), entry("other", OTHER_KEY))
    async with make_world(keys=keys) as world:
        world.say("Yes.")
        world.language.hangs = True
        first = asyncio.create_task(asked(world, KEY, "First?"))
        await eventually(lambda: world.language.num_running == 1)
        waiting = asyncio.create_task(asked(world, KEY, "Second?"))
        await asyncio.sleep(0.05)
        error = await refused(asked(world, KEY, "Third?"))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_BUSY")
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
    """A queue bounded by number alone holds any amount: hundreds of pictures of twenty megabytes."""
    limits = {"max_message_bytes": 2**20, "max_request_bytes": 2**20}
    async with make_world(max_running=1, max_waiting=100, **limits) as world:
        world.language.hangs = True
        calls = [asyncio.create_task(world.ask(bytes(500_000), "?")) for _ in range(2)]  # one runs, one waits
        await eventually(lambda: world.language.num_running == 1)
        error = await refused(world.ask(bytes(500_000), "?"))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BYTES_BUSY")
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
        assert 15 < error.retry_after_s <= 20


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
        assert error.retry_after_s == pytest.approx(used - 60, abs=2)
        assert len(world.language.starts) == num_starts


async def test_salts_keep_pictures_and_prefixes_apart(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(entry("acme", KEY, cache_salt="acme"), entry("other", OTHER_KEY, cache_salt="other"))
    async with make_world(keys=keys) as world:
        levels = [
            (await asked(world, key, PICTURE, "What?")).finished.images[0].cache_level for key in (KEY, OTHER_KEY, KEY)
        ]
        miss, hit = gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_GATEWAY
        assert levels == [miss, miss, hit]
        assert [start.cache_salt for start in world.language.starts] == [b"acme", b"other", b"acme"]


async def test_a_picture_put_by_one_tenant_is_not_there_for_another(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """Else a digest would tell whether somebody else has a picture."""
    keys = write_keys(entry("acme", KEY, cache_salt="acme"), entry("other", OTHER_KEY, cache_salt="other"))
    async with make_world(keys=keys) as world:
        chunks = iter([gateway_pb2.PutImageRequest(chunk=PICTURE)])
        put = await world.stub.PutImage(chunks, metadata=[authorization(KEY)])
        request = ask("What?")
        request.messages[0].parts.add(image=gateway_pb2.Image(sha256=put.sha256))
        await read(world.stub.Generate(request, metadata=[authorization(KEY)]))
        error = await refused(read(world.stub.Generate(request, metadata=[authorization(OTHER_KEY)])))
        assert error.reason == "IMAGE_NOT_FOUND"


async def test_the_client_shows_its_key_and_keeps_it_out_of_what_it_prints(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    async with make_world(keys=write_keys(entry("acme", KEY))) as world:
        world.say("Yes.")
        async with AsyncClient(world.address, api_key=KEY) as client:
            assert (await client.ask("Are you there?")).text == "Yes."
            assert KEY not in repr(client.generate("?")._envelope)
        async with AsyncClient(world.address) as client:
            with pytest.raises(Unauthenticated):
                await client.ask("Are you there?")
        with pytest.raises(InvalidArgument):
            AsyncClient(world.address, api_key="schlüssel").generate("?")


def test_a_new_key_and_its_lines_for_the_key_file_go_together(
    write_keys: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    app(["keys", "new", "ops", "--role", "operator"], standalone_mode=False)
    printed = capsys.readouterr()
    key = printed.err.strip()
    assert key not in printed.out
    callers = Callers(write_keys(printed.out), without_keys="client")
    assert callers.identify([authorization(key)], role="operator").name == "ops"


def test_operators_may_more(write_keys: Callable[..., Path]) -> None:
    path = write_keys(entry("acme", KEY), entry("ops", OPERATOR_KEY, role="operator"))
    callers = Callers(path, without_keys="operator")
    assert callers.identify([authorization(OPERATOR_KEY)], role="operator").name == "ops"
    with pytest.raises(TandemError) as raised:
        callers.identify([authorization(KEY)], role="operator")
    assert raised.value.reason == "NOT_OPERATOR"


def test_without_keys_everybody_is_what_the_settings_say() -> None:
    assert Callers(None, without_keys="operator").identify((), role="operator").name == "anonymous"
    with pytest.raises(TandemError):
        Callers(None, without_keys="client").identify((), role="operator")


def test_a_key_is_shown_as_it_was_made() -> None:
    assert shown_key([authorization(KEY)]) == KEY
    with pytest.raises(Unauthenticated):
        shown_key([("authorization", b"Bearer bytes")])


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "127.9.9.9:1"])
def test_loopback_needs_neither_tls_nor_keys(listen: str) -> None:
    fields: dict[str, Any] = {"models": Path(), "release": "x-v1.0.0", "listen": listen}
    settings = GatewaySettings(**fields)
    assert settings.role_without_keys == "operator"


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:50050", "gateway.example:1"])
def test_other_addresses_need_both_or_an_explicit_word(listen: str, write_keys: Callable[..., Path]) -> None:
    path = write_keys(entry("acme", KEY))

    def start(**fields: Any) -> GatewaySettings:
        return GatewaySettings(models=Path(), release="x-v1.0.0", listen=listen, **fields)

    with pytest.raises(ValueError, match="--allow-plaintext"):
        start(keys=path)
    with pytest.raises(ValueError, match="--allow-anonymous"):
        start(tls_cert=path, tls_key=path)
    start(tls_cert=path, tls_key=path, keys=path)
    start(tls_cert=path, tls_key=path, tls_client_ca=path)
    assert start(allow_plaintext=True, allow_anonymous=True).role_without_keys == "client"


async def test_longest_prompt_and_answer_are_settings(make_world: MakeWorld) -> None:
    async with make_world(max_prompt_tokens=60, max_output_tokens=50) as world:
        assert (await refused(world.ask("?", sampling={"max_tokens": 51}))).reason == "ANSWER_TOO_LONG"
        assert (await refused(world.ask("word " * 20))).reason == "PROMPT_TOO_LONG"
        await world.ask("?")
        await world.ask("?", sampling={"max_tokens": 7})
        assert [start.sampling.max_tokens for start in world.language.starts] == [50, 7]
