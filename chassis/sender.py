"""Tell the senders of messages apart."""

import ipaddress
from dataclasses import dataclass

from chassis.network import peer_host


@dataclass(frozen=True, slots=True)
class Sender:
    """The origin of a message.

    Attributes:
        connection: gRPC's name of the peer, with its port.
        owner: the tenant or certificate. For a stranger its network address, and for IPv6 the network of 64 bits, which
            is one customer's.
    """

    connection: str
    owner: str

    @classmethod
    def of(cls, peer: str, caller: str = "") -> "Sender":
        """Return the sender of a call.

        Args:
            peer: gRPC's name of the peer, such as 'ipv4:10.0.0.1:5000'.
            caller: name of the tenant or certificate. Empty for a stranger.
        """
        if caller:
            return cls(peer, f"caller {caller}")
        host = peer_host(peer)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return cls(peer, host)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
            host = str(ipaddress.ip_network((address, 64), strict=False).network_address)
        return cls(peer, host)
