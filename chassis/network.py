"""Network addresses and the default message limit."""

import ipaddress

DEFAULT_MAX_MESSAGE_BYTES = 32 * 2**20


def split_address(address: str) -> tuple[str, int]:
    """Return the host and port of 'host:port' or '[::1]:port'.

    The host has no brackets.

    Raises:
        ValueError: `address` has another form, or its port is above 65535.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("must be host:port with a port from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach 'host:port'."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
