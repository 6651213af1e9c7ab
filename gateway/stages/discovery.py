"""Find a stage's endpoints by address or DNS name."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic

import grpc
import structlog

from chassis.channels import ChannelTls, open_channel
from chassis.errors import FailedPrecondition
from chassis.network import split_address
from gateway.stages.endpoint import Endpoint, Stub

DNS_PREFIX = "dns:///"

# An endpoint whose address left DNS gets no new calls. Its calls in flight get this long to end.
_CLOSE_GRACE_S = 600.0

_log = structlog.get_logger()

Resolve = Callable[[str], Awaitable[list[str]]]  # 'name:port' to its addresses 'host:port'


async def resolve_name(name: str) -> list[str]:
    """Return the current addresses of 'name:port'.

    A headless service in Kubernetes resolves to its ready pods.

    Raises:
        OSError: the name does not exist, or no DNS server answers.
    """
    host, port = split_address(name)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = {str(address[0]) for *_, address in found}
    return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)


class Discovery(Generic[Stub]):
    """The endpoints of one stage, with their channels."""

    def __init__(
        self,
        stage: str,
        targets: Sequence[str],
        make_stub: Callable[[grpc.aio.Channel], Stub],
        *,
        tls: ChannelTls | None,
        resolve: Resolve,
    ) -> None:
        """Open channels to the fixed addresses.

        DNS names are resolved by `update`.

        Args:
            stage: name of the stage, for logs and errors.
            targets: 'host:port' for one endpoint, or 'dns:///name:port' for all addresses of a name.
            make_stub: makes the stage's stub on a channel.
            tls: how to secure the channels. None is plain text.
            resolve: looks up DNS names.

        Raises:
            FailedPrecondition: reason 'BAD_TLS'.
        """
        self._stage = stage
        self._make_stub = make_stub
        self._tls = tls
        self._resolve = resolve
        self._names = [target.removeprefix(DNS_PREFIX) for target in targets if target.startswith(DNS_PREFIX)]
        self._resolved: dict[tuple[str, str], Endpoint[Stub]] = {}  # by name and address
        self._fixed = [self._open(target) for target in targets if not target.startswith(DNS_PREFIX)]
        if tls is not None:
            tls.credentials()  # names are resolved later, but a bad file must stop the start
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def endpoints(self) -> list[Endpoint[Stub]]:
        """All current endpoints."""
        return [*self._fixed, *self._resolved.values()]

    async def update(self) -> None:
        """Resolve all DNS names, open new endpoints, close old ones."""
        await asyncio.gather(*(self._update_name(name) for name in self._names))

    async def close(self) -> None:
        """Close all channels. Calls in flight are cancelled."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(endpoint.channel.close(None) for endpoint in self.endpoints))

    async def _update_name(self, name: str) -> None:
        try:
            addresses = await self._resolve(name)
        except OSError as error:
            _log.warning("dns lookup failed, keeping old addresses", stage=self._stage, name=name, error=error.strerror)
            return
        try:
            for address in addresses:
                if (name, address) not in self._resolved:
                    self._resolved[name, address] = self._open(address, authority=split_address(name)[0])
        except FailedPrecondition as error:  # someone is writing the TLS files, so the next update finds them complete
            _log.warning("new addresses not added", stage=self._stage, name=name, error=error.message)
        for key in [key for key in self._resolved if key[0] == name and key[1] not in addresses]:
            self._close_later(self._resolved.pop(key))

    def _open(self, address: str, authority: str | None = None) -> Endpoint[Stub]:
        channel = open_channel(address, tls=self._tls, authority=authority)
        return Endpoint(self._stage, address, channel, self._make_stub(channel))

    def _close_later(self, endpoint: Endpoint[Stub]) -> None:
        """Close an endpoint in the background after its last call."""
        closing = asyncio.create_task(endpoint.channel.close(_CLOSE_GRACE_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
