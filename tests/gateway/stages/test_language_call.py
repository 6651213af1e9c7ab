"""Calls of `LanguageService.Generate` that grpc.aio itself ends."""

import grpc
import pytest

from chassis.deadline import Deadline
from chassis.errors import Unavailable
from gateway.stages.language_call import LanguageCall, LanguageStub


async def test_a_call_on_a_closed_channel_is_unreachable() -> None:
    """A channel is closed once its address has left DNS."""
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    stub = LanguageStub(channel)
    await channel.close(None)
    with pytest.raises(Unavailable) as raised:
        LanguageCall(stub, Deadline.after(5))
    assert raised.value.reason == "LANGUAGE_UNREACHABLE"
