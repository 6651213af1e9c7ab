"""The state that all routes of one process share."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from starlette.requests import HTTPConnection

from http_gateway.door.settings import HttpSettings
from http_gateway.images import ImageReader
from http_gateway.wire.bodies import BodyBudget
from http_gateway.wire.caller import Caller
from tandem.v1 import gateway_pb2_grpc


class Door:
    """Settings, channel to the gateway, requests in flight.

    Attributes:
        draining: the process stops. It is not ready, and each connection closes after its response.
        stopping: requests in flight are being cancelled.
    """

    def __init__(
        self, settings: HttpSettings, channel: grpc.aio.Channel, bodies: BodyBudget, images: ImageReader
    ) -> None:
        """Take what is open. The caller closes it."""
        self.settings = settings
        self.channel = channel
        self.gateway: Any = gateway_pb2_grpc.GatewayStub(channel)  # its published type is that of a blocking channel
        self.bodies = bodies
        self.images = images
        self.draining = False
        self.stopping = False
        self._in_flight: set[asyncio.Task[Any]] = set()

    def may_operate(self, caller: Caller) -> bool:
        """Return whether to pass on an operator's call.

        The gateway checks the role. But a gateway without keys takes every call for an operator's, so a door that
        others can reach passes none on unasked.
        """
        return self.settings.is_local or (self.settings.operators and caller.has_key)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count the current task as a request in flight."""
        task = asyncio.current_task()
        assert task is not None
        self._in_flight.add(task)
        try:
            yield
        finally:
            self._in_flight.discard(task)

    def cancel_requests(self) -> None:
        """Cancel every request in flight."""
        self.stopping = True
        for task in self._in_flight:
            task.cancel()


def door_of(connection: HTTPConnection) -> Door:
    """Return the door that serves a request."""
    door = connection.app.state.door
    assert isinstance(door, Door)
    return door
