"""Keys and what their tenants may do, over real sockets."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.api_keys import api_key_of, authorization, new_key
from chassis.errors import Code, FailedPrecondition, InvalidArgument, TandemError, Unauthenticated
from gateway.admission.authenticator import Authenticator
from gateway.admission.tenants import read_tenants
from gateway.settings import GatewaySettings
from tandem.client.aio import AsyncClient
from tandem.commands import app
from tandem.v1 import gateway_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.keyed import asked, entry, refused
from tests.gateway.scripted import World, ask, read

KEY, OTHER_KEY, OPERATOR_KEY = new_key(), new_key(), new_key()
IMAGE = b"an image"


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
            assert (error.code, error.reason) == (Code.UNAUTHENTICATED, reason)
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
    async with asyncio.timeout(30):
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


async def test_salts_keep_images_and_prefixes_apart(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(entry("acme", KEY, cache_salt="acme"), entry("other", OTHER_KEY, cache_salt="other"))
    async with make_world(keys=keys) as world:
        levels = [
            (await asked(world, key, IMAGE, "What?")).finished.images[0].cache_level for key in (KEY, OTHER_KEY, KEY)
        ]
        miss, hit = gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_GATEWAY
        assert levels == [miss, miss, hit]
        assert [start.cache_salt for start in world.language.starts] == [b"acme", b"other", b"acme"]


async def test_an_image_put_by_one_tenant_is_not_there_for_another(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """Else a digest would tell whether somebody else has an image."""
    keys = write_keys(entry("acme", KEY, cache_salt="acme"), entry("other", OTHER_KEY, cache_salt="other"))
    async with make_world(keys=keys) as world:
        chunks = iter([gateway_pb2.PutImageRequest(chunk=IMAGE)])
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
    authenticator = Authenticator(write_keys(printed.out), role_without_keys="client")
    assert authenticator.authenticate([authorization(key)], role="operator").name == "ops"


def test_operators_may_more(write_keys: Callable[..., Path]) -> None:
    path = write_keys(entry("acme", KEY), entry("ops", OPERATOR_KEY, role="operator"))
    authenticator = Authenticator(path, role_without_keys="operator")
    assert authenticator.authenticate([authorization(OPERATOR_KEY)], role="operator").name == "ops"
    with pytest.raises(TandemError) as raised:
        authenticator.authenticate([authorization(KEY)], role="operator")
    assert raised.value.reason == "NOT_OPERATOR"


def test_without_keys_everybody_is_what_the_settings_say() -> None:
    assert Authenticator(None, role_without_keys="operator").authenticate((), role="operator").name == "anonymous"
    with pytest.raises(TandemError):
        Authenticator(None, role_without_keys="client").authenticate((), role="operator")


def test_a_key_is_shown_as_it_was_made() -> None:
    assert api_key_of([authorization(KEY)]) == KEY
    with pytest.raises(Unauthenticated):
        api_key_of([("authorization", b"Bearer bytes")])


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
