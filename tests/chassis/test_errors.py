"""Errors sent between processes, also by other servers and by gRPC."""

from pathlib import Path

import grpc
import pytest

from chassis import errors, grpc_errors


def rpc_error(code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> grpc.RpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, grpc.aio.Metadata(*trailing), details=details, debug_error_string=None)


def test_every_status_has_one_error_class() -> None:
    codes = [kind.code for kind in errors.TandemError.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert {code.name for code in errors.Code} < {code.name for code in grpc.StatusCode}


def test_an_error_of_another_server_keeps_its_status_and_message() -> None:
    error = grpc_errors.from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "No such row."))
    assert isinstance(error, errors.NotFound)
    assert (error.message, error.reason) == ("No such row.", "NOT_FOUND")


def test_a_status_without_an_error_class_keeps_its_name() -> None:
    error = grpc_errors.from_rpc_error(rpc_error(grpc.StatusCode.ABORTED, ""))
    assert (type(error), error.message, error.reason) == (errors.TandemError, "ABORTED", "ABORTED")


def test_the_path_appears_in_the_local_message_and_is_never_sent() -> None:
    error = errors.NotFound("The model store has no a-v1.0.0.", where=Path("/srv/models"))
    assert error.local_message == "The model store has no a-v1.0.0 (/srv/models)."
    assert b"/srv" not in grpc_errors.to_proto(error).SerializeToString()
    assert errors.NotFound("There is none.").local_message == "There is none."


@pytest.mark.parametrize("details", [b"\xff\xff", b""])
def test_unreadable_details_do_not_hide_the_status(details: bytes) -> None:
    raised = rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "Full.", (("grpc-status-details-bin", details),))
    error = grpc_errors.from_rpc_error(raised)
    assert isinstance(error, errors.ResourceExhausted)
    assert error.message == "Full."


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
)
def test_messages_of_grpc_itself_with_addresses_are_replaced(code: grpc.StatusCode) -> None:
    error = grpc_errors.from_rpc_error(rpc_error(code, "failed to connect to all addresses; ipv4:10.1.2.3:50051"))
    assert error.code.name == code.name
    assert "10.1.2.3" not in error.message
    assert error.message.endswith(".")
