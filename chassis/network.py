"""Addresses and the message limit that clients and servers share."""

DEFAULT_MAX_MESSAGE_BYTES = 32 * 2**20


def split_address(address: str) -> tuple[str, int]:
    """Split 'host:port' or '[::1]:port' into host, without brackets, and port.

    Raises:
        ValueError: it is neither, or the port is not 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("must be host:port with a port from 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)
