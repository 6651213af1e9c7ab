"""API keys, roles and cache groups of tenants."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from chassis.api_keys import api_key_of, authorization, new_key
from chassis.errors import Code, FailedPrecondition, InvalidArgument, TandemError, Unauthenticated
from gateway.admission.authenticator import Authenticator
from gateway.admission.tenants import Tenant, read_tenants
from tandem.client.aio import AsyncClient
from tandem.commands import app
from tandem.v1 import gateway_pb2
from tests.gateway.api_keys import ask_with_key, tenant_entry
from tests.gateway.conftest import MakeWorld
from tests.gateway.scripted import World, ask, error_of, read

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
async def test_every_call_needs_a_valid_key_and_no_error_contains_one(
    metadata: list[tuple[str, str]], reason: str, make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """Every method of the contract is tried, future ones included."""
    async with make_world(keys=write_keys(tenant_entry("acme", KEY))) as world:
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
            error = await error_of(call.read() if method.server_streaming else call)
            assert (error.code, error.reason) == (Code.UNAUTHENTICATED, reason)
            assert not any(key in error.message for key in (KEY, OTHER_KEY))
        assert (await ask_with_key(world, KEY, "Hi.")).finished


async def test_a_changed_key_file_applies_without_a_restart_and_an_invalid_one_is_ignored(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    path = write_keys(tenant_entry("acme", KEY))
    async with make_world(keys=path, refresh_s=0.02) as world:
        write_keys(tenant_entry("acme", OTHER_KEY))
        await wait_until_known(world, OTHER_KEY)
        assert (await error_of(ask_with_key(world, KEY, "Hi."))).reason == "UNKNOWN_API_KEY"
        path.write_text(f'[[tenants]]\nname = "acme"\nkey_sha256 = ["{KEY}"]')
        await asyncio.sleep(0.2)
        await ask_with_key(world, OTHER_KEY, "Hi.")


async def wait_until_known(world: World, key: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await ask_with_key(world, key, "Hi.")
            except grpc.RpcError:
                await asyncio.sleep(0.02)
            else:
                return


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        # The key is random, the names of tests are not.
        pytest.param(f'tenants = [{{name = "a", key_sha256 = ["{KEY}"]}}]', "tenants.0.key_sha256.0", id="digest"),
        (tenant_entry("a", KEY, max_runing=3), "max_runing"),
        (tenant_entry("a", KEY, cache_group="g" * 65), "cache_group"),
        (tenant_entry("a\nb", KEY), "tenants.0.name"),
        (tenant_entry("a", KEY) + tenant_entry("b", KEY), "twice"),
        (tenant_entry("a", KEY) + tenant_entry("a", OTHER_KEY), "same name"),
        (tenant_entry("a"), "key_sha256"),
        pytest.param(KEY, "not TOML (at ", id="file"),
        ("", "tenants"),
    ],
)
def test_an_invalid_key_file_is_refused_with_its_path_and_field_but_no_value(
    content: str, problem: str, write_keys: Callable[..., Path]
) -> None:
    """Someone will paste a key where its SHA-256 belongs."""
    path = write_keys(content)
    with pytest.raises(FailedPrecondition) as raised:
        read_tenants(path)
    assert problem in raised.value.message
    assert str(path) in raised.value.local_message
    assert KEY not in raised.value.local_message


async def test_tenants_share_no_image_and_no_prefix_by_default(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    async with make_world(keys=write_keys(tenant_entry("acme", KEY), tenant_entry("other", OTHER_KEY))) as world:
        levels = [
            (await ask_with_key(world, key, IMAGE, "What?")).finished.images[0].cache_level
            for key in (KEY, OTHER_KEY, KEY)
        ]
        miss, hit = gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_GATEWAY
        assert levels == [miss, miss, hit]
        acme, other = Tenant(name="acme").salt, Tenant(name="other").salt
        assert [start.cache_salt for start in world.language.starts] == [acme, other, acme]


@pytest.mark.parametrize("field", ["cache_group", "cache_salt"])  # the latter in older key files
async def test_the_tenants_of_one_group_share_images_and_prefixes(
    field: str, make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    keys = write_keys(*(tenant_entry(name, key, **{field: "shop"}) for name, key in (("a", KEY), ("b", OTHER_KEY))))
    async with make_world(keys=keys) as world:
        levels = [
            (await ask_with_key(world, key, IMAGE, "What?")).finished.images[0].cache_level for key in (KEY, OTHER_KEY)
        ]
        assert levels == [gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_GATEWAY]
        assert len({start.cache_salt for start in world.language.starts}) == 1


def test_no_name_of_a_group_or_tenant_gives_the_salt_of_another() -> None:
    names = ["a", "b", "tenant", "group", "anonymous"]
    salts = [Tenant(name=name).salt for name in names]
    salts += [Tenant(name="a", cache_group=group).salt for group in (*names, "tenant\na", "a\n")]
    assert len(set(salts)) == len(salts)
    assert {len(salt) for salt in salts} == {32}
    assert Tenant(name="a", cache_group="b").salt == Tenant(name="c", cache_group="b").salt


async def test_an_uploaded_image_is_invisible_to_other_tenants(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    """Otherwise a digest would reveal other tenants' images."""
    async with make_world(keys=write_keys(tenant_entry("acme", KEY), tenant_entry("other", OTHER_KEY))) as world:
        chunks = iter([gateway_pb2.PutImageRequest(chunk=IMAGE)])
        put = await world.stub.PutImage(chunks, metadata=[authorization(KEY)])
        request = ask("What?")
        request.messages[0].parts.add(image=gateway_pb2.Image(sha256=put.sha256))
        await read(world.stub.Generate(request, metadata=[authorization(KEY)]))
        error = await error_of(read(world.stub.Generate(request, metadata=[authorization(OTHER_KEY)])))
        assert error.reason == "IMAGE_NOT_FOUND"


async def test_the_client_sends_its_key_and_never_prints_it(
    make_world: MakeWorld, write_keys: Callable[..., Path]
) -> None:
    async with make_world(keys=write_keys(tenant_entry("acme", KEY))) as world:
        world.say("Yes.")
        async with AsyncClient(world.address, api_key=KEY) as client:
            assert (await client.ask("Are you there?")).text == "Yes."
            assert KEY not in repr(client.generate("?")._envelope)
        async with AsyncClient(world.address) as client:
            with pytest.raises(Unauthenticated):
                await client.ask("Are you there?")
        with pytest.raises(InvalidArgument):
            AsyncClient(world.address, api_key="schlüssel").generate("?")


def test_a_new_key_matches_its_printed_key_file_entry(
    write_keys: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    app(["keys", "new", "ops", "--role", "operator"], standalone_mode=False)
    printed = capsys.readouterr()
    key = printed.err.strip()
    assert key not in printed.out
    authenticator = Authenticator(write_keys(printed.out), role_without_keys="client")
    assert authenticator.authenticate([authorization(key)], role="operator").name == "ops"


def test_only_operators_pass_an_operator_check(write_keys: Callable[..., Path]) -> None:
    path = write_keys(tenant_entry("acme", KEY), tenant_entry("ops", OPERATOR_KEY, role="operator"))
    authenticator = Authenticator(path, role_without_keys="operator")
    assert authenticator.authenticate([authorization(OPERATOR_KEY)], role="operator").name == "ops"
    with pytest.raises(TandemError) as raised:
        authenticator.authenticate([authorization(KEY)], role="operator")
    assert raised.value.reason == "NOT_OPERATOR"


def test_without_keys_every_caller_has_the_role_of_the_settings() -> None:
    operator = Authenticator(None, role_without_keys="operator").authenticate((), role="operator")
    assert (operator.name, operator.shares_caches) == ("anonymous", False)
    stranger = Authenticator(None, role_without_keys="client").authenticate(())
    assert (stranger.name, stranger.shares_caches) == ("anonymous", True)
    with pytest.raises(TandemError):
        Authenticator(None, role_without_keys="client").authenticate((), role="operator")


def test_a_key_is_read_from_metadata_as_it_was_sent() -> None:
    assert api_key_of([authorization(KEY)]) == KEY
    with pytest.raises(Unauthenticated):
        api_key_of([("authorization", b"Bearer bytes")])
