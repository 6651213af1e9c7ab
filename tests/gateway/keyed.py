"""Requests of callers with keys, and the key file that knows them."""

import json
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from chassis.api_keys import authorization, key_sha256
from chassis.errors import TandemError
from chassis.grpc_errors import from_rpc_error
from tests.gateway.scripted import World, ask, read


def entry(name: str, *keys: str, **fields: Any) -> str:
    """Return one tenant as the key file has it."""
    values = {"name": name, "key_sha256": [key_sha256(key) for key in keys], **fields}
    return "[[tenants]]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in values.items())


async def asked(world: World, key: str, *parts: str | bytes, **options: Any) -> Any:
    return await read(world.stub.Generate(ask(*parts, **options), metadata=[authorization(key)]))


async def refused(call: Awaitable[Any]) -> TandemError:
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return from_rpc_error(raised.value)
