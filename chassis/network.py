"""Network addresses and the default message limit."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import unquote

DEFAULT_MAX_MESSAGE_BYTES = 32 * 2**20
LOOPBACK_NETWORKS = ("127.0.0.0/8", "::1/128")


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


def join_address(host: str, port: int) -> str:
    """Return 'host:port', or '[::1]:port'."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach 'host:port'."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def peer_host(peer: str) -> str:
    """Return the host of gRPC's name for a peer.

    'ipv4:10.0.0.1:5000' and 'ipv6:%5B::1%5D:5000' become '10.0.0.1' and '::1'. Other names, such as 'unix:', stay.
    """
    kind, _, address = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


class Networks:
    """A set of IP networks."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Read networks such as '10.0.0.0/8'.

        Raises:
            ValueError: one of them is no network.
        """
        try:
            self._networks = [ipaddress.ip_network(network) for network in networks]
        except ValueError:
            raise ValueError("must be networks such as 10.0.0.0/8") from None

    def __contains__(self, host: str) -> bool:
        """Return whether a network has this address.

        Callers over a Unix socket are on this machine, so every set has them.
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host.startswith("unix")
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)
