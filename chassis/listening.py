"""Explain why a server cannot listen on an address."""

import errno
import socket

from chassis.errors import FailedPrecondition
from chassis.network import split_address

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


def bind_error(address: str) -> OSError | None:
    """Return the error of binding a socket, if any."""
    host, port = split_address(address)
    try:
        for family, kind, protocol, _, socket_address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
                probe.bind(socket_address)
    except OSError as error:
        return error
    return None


def _describe(error: OSError | None) -> str:
    if error is None:
        return "the address is free now, so start again"
    if isinstance(error, socket.gaierror):
        return _UNKNOWN_HOST
    return _CAUSE_AND_REMEDY.get(error.errno or 0) or (error.strerror or str(error)).lower()
