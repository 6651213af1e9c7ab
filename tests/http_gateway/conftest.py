"""Fixtures: doors before the stack and before scripted gateways."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tandem.stack import Stack
from tests.http_gateway.doors import RunningDoor, running_door
from tests.serving import Handlers, serve

__all__ = ["serve"]

OpenDoor = Callable[..., Awaitable[RunningDoor]]


@pytest.fixture
async def door(stack: Stack) -> AsyncIterator[RunningDoor]:
    """Yield a door in front of the three services."""
    async with running_door(stack.address) as door:
        yield door


@pytest.fixture
async def open_door(serve: Callable[..., Awaitable[Any]]) -> AsyncIterator[OpenDoor]:
    """Return `open_door(handlers, **settings)`.

    It runs a door in front of a gateway with such handlers.
    """
    async with AsyncExitStack() as stack:

        async def start(handlers: Handlers | None = None, **settings: Any) -> RunningDoor:
            running = await serve(gateway=handlers or {})
            return await stack.enter_async_context(running_door(f"127.0.0.1:{running.server.port}", **settings))

        yield start
