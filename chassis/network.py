"""Network addresses and the default message limit."""

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
