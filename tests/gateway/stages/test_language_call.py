"""A call of the language stage and its ends that grpc.aio has words of its own for."""

import grpc
import pytest

from chassis.deadline import Deadline
from chassis.errors import Unavailable
from gateway.stages.language_call import LanguageCall
from tandem.v1 import language_pb2_grpc


async def test_a_replica_that_left_since_it_was_found_cannot_be_reached() -> None:
    """Its channel is closed once its name no longer leads to it; another replica can still be asked."""
    channel = grpc.aio.insecure_channel("127.0.0.1:1")
    stub = language_pb2_grpc.LanguageServiceStub(channel)
    await channel.close(None)
    with pytest.raises(Unavailable) as raised:
        LanguageCall(stub, Deadline.after(5))
    assert raised.value.reason == "LANGUAGE_UNREACHABLE"
