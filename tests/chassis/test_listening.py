"""A server that cannot listen says why and how to fix it."""

import errno
import os
import socket

import pytest

from chassis.errors import FailedPrecondition
from chassis.listening import cannot_listen, reserved_address
from chassis.metrics_server import serve_metrics
from chassis.network import split_address
from chassis.server import Server
from chassis.settings import ProcessSettings, ServiceSettings

FOREIGN_HOST = "192.0.2.1"  # reserved for documentation, so no machine has it (RFC 5737)


async def start_grpc(host: str, port: int) -> None:
    await Server(ServiceSettings(listen=f"{host}:{port}")).start()


async def start_metrics(host: str, port: int) -> None:
    async with serve_metrics(ProcessSettings(metrics_host=host, metrics_port=port)):
        pass


@pytest.mark.parametrize("start", [start_grpc, start_metrics])
async def test_a_port_in_use_is_the_cause(start: type) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(FailedPrecondition, match=r"the port is in use, so .* choose another port") as caught:
            await start(*server.getsockname())
        assert f"127.0.0.1:{server.getsockname()[1]}" in caught.value.message
    assert caught.value.reason == "CANNOT_LISTEN"


@pytest.mark.parametrize("start", [start_grpc, start_metrics])
async def test_an_address_of_another_machine_is_the_cause(start: type) -> None:
    with pytest.raises(FailedPrecondition, match="this machine does not have that address, so use"):
        await start(FOREIGN_HOST, 50051)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "permission denied, so choose a port above 1023"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the host name is unknown, so check"),
        (OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)), "address family not supported by protocol"),
    ],
)
def test_errors_of_the_operating_system_are_explained(error: OSError, cause: str) -> None:
    assert cause in cannot_listen("localhost:80", error).message


def test_a_conflict_that_is_over_is_explained() -> None:
    """The other process may stop between gRPC's attempt and ours."""
    assert "free now, so start again" in cannot_listen("127.0.0.1:0").message


def test_only_processes_that_share_ports_can_use_a_reserved_one() -> None:
    with reserved_address("127.0.0.1:0") as address:
        host, port = split_address(address)
        with (
            socket.create_server((host, port), reuse_port=True),
            socket.create_server((host, port), reuse_port=True),
            pytest.raises(OSError, match="in use"),
        ):
            socket.create_server((host, port))
        with pytest.raises(FailedPrecondition, match="the port is in use"), reserved_address(address):
            pass  # another supervisor
    socket.create_server((host, port)).close()


def test_a_name_of_several_addresses_gets_one_port() -> None:
    with reserved_address("localhost:0") as address:
        assert split_address(address)[1] > 0
        addresses = {found[4][:2] for found in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        for host, _ in addresses:
            with pytest.raises(OSError, match="in use"):
                socket.create_server((host, split_address(address)[1]), family=_family(str(host)))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
