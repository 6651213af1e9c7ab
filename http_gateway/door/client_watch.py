"""Cancel a request whose client leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from chassis.errors import Cancelled, Unavailable
from http_gateway.door.state import Door


@asynccontextmanager
async def until_client_leaves(receive: Receive, door: Door) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects.

    The request's body must have been read. The block must not end the response: that, too, reads as a disconnect.

    Raises:
        Cancelled: reason 'CLIENT_LEFT'.
        Unavailable: reason 'STOPPING', the process stops and waits no longer.
    """
    task = asyncio.current_task()
    assert task is not None
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise Cancelled("The client left before the end of the answer.", reason="CLIENT_LEFT") from None
        if door.stopping and task.uncancel() == 0:
            raise Unavailable("The server is stopping: retry the request.", reason="STOPPING") from None
        raise
    finally:
        watcher.cancel()
