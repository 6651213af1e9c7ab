"""The replicas of a stage: which endpoint serves which tag, learnt by asking, and which one takes the next request."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic

import grpc
import structlog

from chassis.channels import ChannelTls, open_channel
from chassis.errors import FailedPrecondition, TandemError, Unavailable
from chassis.network import split_address
from gateway.stages.endpoint import Endpoint, Stub, absent
from gateway.stages.errors import errors_of, unreachable
from tandem.v1 import model_pb2

__all__ = ["Endpoint", "Replica", "Stage", "errors_of", "resolve", "unreachable"]

DNS = "dns:///"
# An endpoint whose name no longer leads to it gets no new calls, and this long for those it has.
_FAREWELL_S = 600.0

_log = structlog.get_logger()

Resolve = Callable[[str], Awaitable[list[str]]]  # 'name:port' -> the addresses 'host:port' it stands for


@dataclass(frozen=True, slots=True)
class Replica(Generic[Stub]):
    """One model at one endpoint, ready to be called."""

    stage: "Stage[Stub]"
    endpoint: Endpoint[Stub]
    info: model_pb2.ModelInfo

    @property
    def stub(self) -> Stub:
        """The endpoint's stub."""
        return self.endpoint.stub


async def resolve(name: str) -> list[str]:
    """Return every address a name stands for now; of a headless service in Kubernetes those of its ready pods.

    Raises:
        OSError: there is no such name, or nobody to ask.
    """
    host, port = split_address(name)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = {str(address[0]) for *_, address in found}
    return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)


class Stage(Generic[Stub]):
    """All endpoints of one stage."""

    def __init__(
        self,
        name: str,
        targets: Sequence[str],
        make_stub: Callable[[grpc.aio.Channel], Stub],
        *,
        tls: ChannelTls | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        """Open the channels; nobody is asked yet.

        Args:
            name: what clients know it by: 'vision' or 'language'.
            targets: host:port of each endpoint, or 'dns:///name:port' for all that the name stands for at any time.
            make_stub: makes the stage's stub on a channel.
            tls: how to secure the channels; None is plain text.
            resolve: looks names up.

        Raises:
            FailedPrecondition: reason 'BAD_TLS'.
        """
        self.name = name
        self._make_stub = make_stub
        self._tls = tls
        self._resolve = resolve
        self._names = [target.removeprefix(DNS) for target in targets if target.startswith(DNS)]
        self._named: dict[tuple[str, str], Endpoint[Stub]] = {}  # by name and address
        self._listed = [self._open(target) for target in targets if not target.startswith(DNS)]
        if tls is not None:
            tls.credentials()  # names are looked up later, but a bad file stops the start
        self._turn = count()
        self._refreshing: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def endpoints(self) -> list[Endpoint[Stub]]:
        """Every endpoint that may be asked now."""
        return [*self._listed, *self._named.values()]

    async def find(self, tag: str) -> Replica[Stub]:
        """Return the replica of `tag` that is least busy with calls from here, in turn where several are.

        Raises:
            Unavailable: nobody serves it now, but may soon.
            FailedPrecondition: reason 'MODEL_FAILED'.
        """
        replicas = await self._seek(lambda: self._ready(tag))
        if not replicas:
            raise self._missing(tag)
        return self._choose(replicas)

    async def another(self, tried: Sequence[Replica[Stub]]) -> Replica[Stub] | None:
        """Return a replica of exactly the model of those in `tried`, at an endpoint not among theirs; None if none."""
        asked = [replica.endpoint for replica in tried]
        replicas = await self._seek(lambda: self._ready(tried[0].info.tag, like=tried[0].info, without=asked))
        return self._choose(replicas) if replicas else None

    def info(self, tag: str) -> model_pb2.ModelInfo | None:
        """Describe the model of `tag` as it was last seen, a ready one before others; None where nobody holds it."""
        infos = [endpoint.models[tag] for endpoint in self.endpoints if tag in endpoint.models]
        return min(infos, key=lambda info: info.state != model_pb2.MODEL_STATE_READY, default=None)

    async def refresh(self) -> bool:
        """Look up names and ask every endpoint for its models.

        Callers at the same time share one round; returns whether it was under way already.
        """
        is_under_way = self._refreshing is not None and not self._refreshing.done()
        if self._refreshing is None or not is_under_way:
            self._refreshing = asyncio.create_task(self._ask_all())
        await asyncio.shield(self._refreshing)
        return is_under_way

    async def close(self) -> None:
        """Close the channels; calls that still run are cancelled."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*(endpoint.channel.close(None) for endpoint in self.endpoints))

    async def _seek(self, seek: Callable[[], list[Replica[Stub]]]) -> list[Replica[Stub]]:
        """Return what `seek` finds, now or else after everybody has been asked anew."""
        replicas = seek()
        if not replicas:
            was_under_way = await self.refresh()
            replicas = seek()
            # Two answers say nothing: one that was asked for too early, and one that did not come in time.
            if not replicas and (was_under_way or any(endpoint.is_late for endpoint in self.endpoints)):
                await self.refresh()
                replicas = seek()
        return replicas

    async def _ask_all(self) -> None:
        before = self._reached()
        await asyncio.gather(*(self._look_up(name) for name in self._names))
        await asyncio.gather(*(endpoint.ask() for endpoint in self.endpoints))
        if self._reached() != before:
            _log.info("stage changed", stage=self.name, answering=self._reached(), endpoints=len(self.endpoints))

    async def _look_up(self, name: str) -> None:
        """Open what the name stands for anew, and leave what it no longer stands for."""
        try:
            addresses = await self._resolve(name)
        except OSError as error:
            _log.warning("name not found, its last addresses hold", stage=self.name, name=name, error=error.strerror)
            return
        try:
            for address in addresses:
                if (name, address) not in self._named:
                    self._named[name, address] = self._open(address, authority=split_address(name)[0])
        except FailedPrecondition as error:  # the files of TLS are being changed; the next round finds them whole
            _log.warning("new addresses not taken over", stage=self.name, name=name, error=error.message)
        for key in [key for key in self._named if key[0] == name and key[1] not in addresses]:
            leaving = asyncio.create_task(self._named.pop(key).channel.close(_FAREWELL_S))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    def _open(self, address: str, authority: str | None = None) -> Endpoint[Stub]:
        channel = open_channel(address, tls=self._tls, authority=authority)
        return Endpoint(self.name, address, channel, self._make_stub(channel))

    def _reached(self) -> int:
        return sum(endpoint.answers for endpoint in self.endpoints)

    def _ready(
        self, tag: str, like: model_pb2.ModelInfo | None = None, without: Collection[Endpoint[Stub]] = ()
    ) -> list[Replica[Stub]]:
        """Return the replicas of `tag`, those of exactly the model `like` where it is given.

        Where some are known to be well the others are left out: those that are ejected, or late with their answers.
        """
        ready = [
            Replica(self, endpoint, info)
            for endpoint in self.endpoints
            if endpoint not in without
            and (info := endpoint.models.get(tag)) is not None
            and info.state == model_pb2.MODEL_STATE_READY
            and (like is None or _is_same(info, like))
        ]
        well = [replica for replica in ready if replica.endpoint.answers and not replica.endpoint.is_ejected(tag)]
        return well or ready

    def _choose(self, replicas: Iterable[Replica[Stub]]) -> Replica[Stub]:
        least = min(replica.endpoint.num_running for replica in replicas)
        idlest = [replica for replica in replicas if replica.endpoint.num_running == least]
        return idlest[next(self._turn) % len(idlest)]

    def _missing(self, tag: str) -> TandemError:
        """Say why no replica serves `tag`."""
        if not self._reached():
            return unreachable(self.name)
        info = self.info(tag)
        if info is None:
            return absent(self.name, tag)
        if info.state == model_pb2.MODEL_STATE_FAILED:
            return FailedPrecondition(f"The {self.name} service could not load {tag}.", reason="MODEL_FAILED")
        state = "LOADING" if info.state == model_pb2.MODEL_STATE_LOADING else "DRAINING"
        return Unavailable(
            f"The {self.name} service is {state.lower()} {tag}.", reason=f"MODEL_{state}", retry_after_s=1
        )


def _is_same(one: model_pb2.ModelInfo, other: model_pb2.ModelInfo) -> bool:
    """Return whether two replicas answer alike: the same weights, and for images the same encoder."""
    return one.half_digest == other.half_digest and one.vision.encoder_id == other.vision.encoder_id
