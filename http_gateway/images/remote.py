"""Fetch images from hosts that the operator allows.

A client chooses the URL, so it may point into a private network, never end, or redirect elsewhere. Scheme, host and
port are compared with the operator's list, again after each redirect. A name is resolved once, all its addresses are
checked, and the connection goes to a checked address. So a name that changes its address meanwhile (DNS rebinding)
gains nothing.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpcore2

from chassis.errors import InvalidArgument
from http_gateway.images.hosts import ImageHosts, RemoteUrl
from http_gateway.wire.bodies import BodyBudget, Reservation

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_CONNECTIONS = 16
_MAX_ADDRESSES = 4  # tried for one host, within the timeout
_KEEP_ALIVE_S = 5.0

# A decoder of content codings would need limits of its own.
_HEADERS = [(b"user-agent", b"tandem"), (b"accept", b"image/*"), (b"accept-encoding", b"identity")]


class RemoteImages:
    """Fetches images within limits of size and time."""

    def __init__(
        self,
        hosts: ImageHosts,
        *,
        timeout_s: float,
        max_bytes: int,
        max_request_bytes: int,
        budget: BodyBudget,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Open no connection yet.

        Args:
            hosts: the operator's lists.
            timeout_s: longest time for all images of a request, redirects included.
            max_bytes: largest image file.
            max_request_bytes: most bytes of all images of a request.
            budget: counts the bytes that arrive.
            ssl_context: trusts the authorities of hosts. None trusts those of the system.
        """
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._max_request_bytes = max_request_bytes
        self._budget = budget
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=_MAX_CONNECTIONS,
            keepalive_expiry=_KEEP_ALIVE_S,
            network_backend=_CheckedNetwork(hosts),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    @contextmanager
    def allowance(self) -> "Iterator[Allowance]":
        """Yield the limits of one request, whose bytes count meanwhile."""
        with self._budget.reserved() as reservation:
            ends_s = asyncio.get_running_loop().time() + self._timeout_s
            yield Allowance(reservation, self._max_request_bytes, ends_s)

    async def fetch(self, url: str, field: str, allowance: "Allowance") -> bytes:
        """Return the image file at a URL.

        Args:
            url: with scheme http or https.
            field: of the image in the request, for errors.
            allowance: of the request.

        Raises:
            InvalidArgument: reason 'BAD_IMAGE_URL', 'IMAGE_URLS_DISABLED', 'IMAGE_HOST_FORBIDDEN', 'IMAGE_TOO_LARGE',
                or 'IMAGE_URL_FAILED' if the host does not answer with a file in time.
            ResourceExhausted: reason 'BODIES_BUSY'.
        """
        try:
            async with asyncio.timeout_at(allowance.ends_s):
                return await self._follow(url, field, allowance)
        except _ForbiddenAddressError:
            raise InvalidArgument(
                "The host of the image is in a private network: send the image as a data: URL.",
                reason="IMAGE_HOST_FORBIDDEN",
                field=field,
            ) from None
        except (TimeoutError, httpcore2.TimeoutException):
            raise _failed(f"The images did not arrive within {self._timeout_s:g} s.", field) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            raise _failed("The host of the image cannot be reached.", field) from None

    async def _follow(self, url: str, field: str, allowance: "Allowance") -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            remote = self._hosts.check_url(url, field)
            async with self._pool.stream("GET", _as_core(remote), headers=_HEADERS) as response:
                location = _header(response, b"location")
                if response.status in _REDIRECTS and location is not None:
                    url = urljoin(url, location)
                    continue
                if response.status != 200:
                    raise _failed(f"The host of the image answers with status {response.status}.", field)
                return await self._read(response, field, allowance)
        raise _failed(f"The URL of the image redirects more than {_MAX_REDIRECTS} times.", field)

    async def _read(self, response: httpcore2.Response, field: str, allowance: "Allowance") -> bytes:
        if (_header(response, b"content-encoding") or "identity").lower() != "identity":
            raise _failed("The host of the image compresses it.", field)
        announced = _header(response, b"content-length") or ""
        if announced.isdigit():
            self._check_size(int(announced), allowance, field)
        data = bytearray()
        async for chunk in response.aiter_stream():
            self._check_size(len(data) + len(chunk), allowance, field)
            allowance.reservation.add(len(chunk))
            data += chunk
        allowance.num_bytes -= len(data)
        return bytes(data)

    def _check_size(self, num_bytes: int, allowance: "Allowance", field: str) -> None:
        if num_bytes > self._max_bytes:
            message = f"The image has more than {self._max_bytes} bytes, send a smaller one."
        elif num_bytes > allowance.num_bytes:
            message = f"The images have more than {self._max_request_bytes} bytes together, send fewer or smaller ones."
        else:
            return
        raise InvalidArgument(message, reason="IMAGE_TOO_LARGE", field=field)


@dataclass(slots=True)
class Allowance:
    """Limits that the images of one request share."""

    reservation: Reservation  # counts the bytes in memory
    num_bytes: int  # left for further images
    ends_s: float  # on the clock of the event loop


class _ForbiddenAddressError(Exception):
    """A host has a forbidden address."""


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that it has checked itself."""

    def __init__(self, hosts: ImageHosts) -> None:
        self._hosts = hosts
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (the library's interface)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to one of the host's addresses.

        Raises:
            _ForbiddenAddressError: one of them is forbidden.
            httpcore2.ConnectError: none of them answers.
        """
        addresses = await _resolve(host, port)
        if not all(map(self._hosts.allows_address, addresses)):
            raise _ForbiddenAddressError
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError:
                continue
        raise httpcore2.ConnectError


async def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, each once."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise httpcore2.ConnectError from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _as_core(url: RemoteUrl) -> httpcore2.URL:
    """Build a URL from its checked parts."""
    return httpcore2.URL(scheme=url.scheme.encode(), host=url.host.encode(), port=url.port, target=url.target.encode())


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


def _failed(problem: str, field: str) -> InvalidArgument:
    return InvalidArgument(
        f"{problem} Check the URL, or send the image as a data: URL.", reason="IMAGE_URL_FAILED", field=field
    )
