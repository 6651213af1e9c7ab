"""Reserve addresses, and explain why a server cannot listen on one."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from chassis.errors import FailedPrecondition
from chassis.network import join_address, split_address

_CAUSE_AND_REMEDY = {
    errno.EADDRINUSE: "the port is in use, so stop the other process or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address, so use one of its own, or 0.0.0.0 for all of them",
    errno.EACCES: "permission denied, so choose a port above 1023",
}
_UNKNOWN_HOST = "the host name is unknown, so check its spelling or use an IP address"


def cannot_listen(address: str, error: OSError | None = None, *, service: str = "gRPC") -> FailedPrecondition:
    """Return an error with the cause and the remedy.

    Args:
        address: 'host:port'.
        error: the error of the operating system. With None, find it by binding a socket, because gRPC hides it.
        service: the kind of server, for the message.
    """
    cause = _describe(error or bind_error(address))
    return FailedPrecondition(f"Cannot listen on {address} for {service}: {cause}.", reason="CANNOT_LISTEN")


@contextmanager
def reserved_address(address: str, *, service: str = "gRPC") -> Iterator[str]:
    """Reserve an address for several processes of this user.

    They all listen on it with SO_REUSEPORT. No other process can, also while none of them does.

    Yields the address, with a free port in place of 0.

    Args:
        address: 'host:port'.
        service: the kind of server, for the message.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN', for example if the port is in use.
    """
    if (error := bind_error(address)) is not None:
        raise cannot_listen(address, error, service=service)
    host, port = split_address(address)
    with ExitStack() as sockets:
        try:
            port = _bind(host, port, sockets, socket.SO_REUSEPORT)  # with SO_REUSEADDR, others could bind it too
        except OSError as error:
            raise cannot_listen(address, error, service=service) from None
        yield join_address(host, port)


def bind_error(address: str) -> OSError | None:
    """Return the error of binding a socket, if any."""
    try:
        with ExitStack() as sockets:
            _bind(*split_address(address), sockets, socket.SO_REUSEADDR)  # as gRPC does
    except OSError as error:
        return error
    return None


def _bind(host: str, port: int, sockets: ExitStack, option: int) -> int:
    """Bind a socket to each address, and return their port."""
    for family, kind, protocol, _, (address, _, *rest) in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        bound = sockets.enter_context(socket.socket(family, kind, protocol))
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind((address, port, *rest))
        port = bound.getsockname()[1]
    return port


def _describe(error: OSError | None) -> str:
    if error is None:
        return "the address is free now, so start again"
    if isinstance(error, socket.gaierror):
        return _UNKNOWN_HOST
    return _CAUSE_AND_REMEDY.get(error.errno or 0) or (error.strerror or str(error)).lower()
