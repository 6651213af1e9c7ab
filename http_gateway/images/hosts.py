"""Decide which remote URLs and addresses images may come from."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from chassis.errors import InvalidArgument

MAX_URL_CHARACTERS = 8192
_PORTS = {"https": 443, "http": 80}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The last 32 bits of such addresses are an IPv4 address: of translators (RFC 6052), and deprecated ones (RFC 4291).
_WITH_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215, never global


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A checked URL, taken apart once."""

    scheme: str
    host: str
    port: int
    target: str  # path and query


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """One entry of the operator's list."""

    scheme: str
    host: str  # '*.example.com' allows every name below example.com
    port: int

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Read 'host' or 'host:port', HTTPS unless it says HTTP.

        Raises:
            ValueError: it is something else.
        """
        parts = urlsplit(entry if "://" in entry else f"https://{entry}")
        is_host_only = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
        has_star = "*" in (parts.hostname or "").removeprefix("*.")
        if parts.scheme not in _PORTS or not parts.hostname or has_star or not is_host_only:
            raise ValueError("must be hosts such as images.example.com, *.example.com or http://store:9000")
        return cls(parts.scheme, _as_ascii(parts.hostname), parts.port or _PORTS[parts.scheme])

    def allows(self, url: RemoteUrl) -> bool:
        """Return whether a URL is of this host."""
        if (url.scheme, url.port) != (self.scheme, self.port):
            return False
        return url.host.endswith(self.host[1:]) if self.host.startswith("*.") else url.host == self.host


class ImageHosts:
    """The hosts and networks of the operator's lists."""

    def __init__(self, hosts: Iterable[str], networks: Iterable[str]) -> None:
        """Read both lists.

        Args:
            hosts: see `AllowedHost.parse`.
            networks: private networks that hosts may be in, such as 10.0.0.0/8.

        Raises:
            ValueError: an entry is invalid.
        """
        self._hosts = [AllowedHost.parse(entry) for entry in hosts]
        self._networks: list[Network] = [ipaddress.ip_network(entry) for entry in networks]

    def check_url(self, url: str, field: str) -> RemoteUrl:
        """Return an allowed URL, taken apart.

        Raises:
            InvalidArgument: reason 'BAD_IMAGE_URL', 'IMAGE_URLS_DISABLED' or 'IMAGE_HOST_FORBIDDEN'.
        """
        if not self._hosts:
            raise InvalidArgument(
                "This server fetches no remote images: send the image as a data: URL, or upload it to /v1/files.",
                reason="IMAGE_URLS_DISABLED",
                field=field,
            )
        try:
            parsed = _parse(url)
        except ValueError:  # of the parser, or an invalid name
            raise InvalidArgument("The URL of the image is not valid.", reason="BAD_IMAGE_URL", field=field) from None
        if not any(host.allows(parsed) for host in self._hosts):
            raise InvalidArgument(
                "This server fetches no images from this host: send a data: URL, or upload the image to /v1/files.",
                reason="IMAGE_HOST_FORBIDDEN",
                field=field,
            )
        return parsed

    def allows_address(self, text: str) -> bool:
        """Return whether a connection may go to an address.

        Private, local and reserved addresses are refused, also inside IPv6 addresses that stand for IPv4 ones.
        """
        address = ipaddress.ip_address(text)
        return all(self._allows(one) for one in _with_embedded(address))

    def _allows(self, address: Address) -> bool:
        is_public = address.is_global and not address.is_multicast and address not in _LOCAL_NAT64
        return is_public or any(address in network for network in self._networks)


def _parse(url: str) -> RemoteUrl:
    if len(url) > MAX_URL_CHARACTERS or not all(33 <= ord(character) <= 126 for character in url):
        raise ValueError("too long, or not percent-encoded")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or "\\" in url:
        raise ValueError("no plain URL of a host")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return RemoteUrl(parts.scheme, _as_ascii(parts.hostname), parts.port or _PORTS[parts.scheme], target)


def _as_ascii(host: str) -> str:
    """Return a host as resolvers take it.

    Raises:
        ValueError: it is no name.
    """
    return host.rstrip(".").encode("idna").decode().lower()


def _with_embedded(address: Address) -> list[Address]:
    """Return an address, and the IPv4 address in it."""
    if address.version == 4:
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if any(address in network for network in _WITH_IPV4):
        return [address, ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address, *([address.sixtofour] if address.sixtofour is not None else [])]
