"""Choose the replica of a stage for each call."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic

import grpc
import structlog

from chassis.channels import ChannelTls
from chassis.errors import FailedPrecondition, TandemError, Unavailable
from gateway.stages.balance import Routing, by_prefix, least_busy
from gateway.stages.discovery import Discovery, Resolve, resolve_name
from gateway.stages.endpoint import Endpoint, Stub
from gateway.stages.errors import model_absent, unreachable
from gateway.stages.one_engine import OneEngine
from tandem.v1 import model_pb2

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Replica(Generic[Stub]):
    """One model at one endpoint, ready for calls."""

    stage: "Stage[Stub]"
    endpoint: Endpoint[Stub]
    info: model_pb2.ModelInfo

    @property
    def stub(self) -> Stub:
        """The endpoint's stub."""
        return self.endpoint.stub


class Stage(Generic[Stub]):
    """The replicas of one stage.

    Each endpoint is asked for its models (`refresh`). A call goes to a replica that is ready and healthy: to the one
    that holds its prefix, unless that is loaded, or to the least busy one.
    """

    def __init__(
        self,
        name: str,
        targets: Sequence[str],
        make_stub: Callable[[grpc.aio.Channel], Stub],
        *,
        tls: ChannelTls | None = None,
        resolve: Resolve = resolve_name,
        routing: Routing = "prefix",
    ) -> None:
        """Open the channels. The first `refresh` asks for the models.

        Args:
            name: 'vision' or 'language', as clients see it in errors.
            targets: 'host:port' for one endpoint, or 'dns:///name:port' for all addresses of a name.
            make_stub: makes the stage's stub on a channel.
            tls: how to secure the channels. None is plain text.
            resolve: looks up DNS names.
            routing: whether a call goes to the replica that holds its prefix.

        Raises:
            FailedPrecondition: reason 'BAD_TLS'.
        """
        self.name = name
        self._routing = routing
        self._discovery = Discovery(name, targets, make_stub, tls=tls, resolve=resolve)
        self._turns = count()
        self._engines = OneEngine()
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def endpoints(self) -> list[Endpoint[Stub]]:
        """All current endpoints."""
        return self._discovery.endpoints

    async def find(self, tag: str, prefix: bytes | None = None) -> Replica[Stub]:
        """Return the replica of `tag` for a call.

        Args:
            tag: the model's tag.
            prefix: digest of the beginning of the call's input, which a replica may hold in its caches.

        Raises:
            Unavailable: no replica is ready now.
            FailedPrecondition: reason 'MODEL_FAILED', the model could not be loaded.
        """
        replicas = await self._search(lambda: self._ready_replicas(tag))
        if not replicas:
            raise self._no_replica(tag)
        return self._choose(replicas, prefix if self._routing == "prefix" else None)

    async def find_alternative(self, tried: Sequence[Replica[Stub]]) -> Replica[Stub] | None:
        """Return a replica of the same model at another endpoint.

        Args:
            tried: replicas of one model, at least one.
        """
        model, tried_endpoints = tried[0].info, [replica.endpoint for replica in tried]
        replicas = await self._search(
            lambda: self._ready_replicas(model.tag, same_model_as=model, exclude=tried_endpoints)
        )
        return self._choose(replicas, None) if replicas else None

    def info(self, tag: str) -> model_pb2.ModelInfo | None:
        """Return the last known description of a model.

        A ready replica is preferred. None if no endpoint has the model.
        """
        return min(self.infos(tag), key=lambda info: info.state != model_pb2.MODEL_STATE_READY, default=None)

    def infos(self, tag: str) -> list[model_pb2.ModelInfo]:
        """Return each endpoint's last description of a model."""
        return [endpoint.models[tag] for endpoint in self.endpoints if tag in endpoint.models]

    async def refresh(self) -> bool:
        """Resolve the names and ask every endpoint for its models.

        Concurrent callers share one round. Return whether it had begun before this call.
        """
        was_running = self._refreshing is not None and not self._refreshing.done()
        if self._refreshing is None or not was_running:
            self._refreshing = asyncio.create_task(self._refresh_all())
        await asyncio.shield(self._refreshing)
        return was_running

    async def close(self) -> None:
        """Close the channels. Calls in flight are cancelled."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._discovery.close()

    async def _refresh_all(self) -> None:
        before = self._num_responsive
        await self._discovery.update()
        await asyncio.gather(*(endpoint.refresh() for endpoint in self.endpoints))
        if self._num_responsive != before:
            _log.info(
                "responsive endpoints changed",
                stage=self.name,
                responsive=self._num_responsive,
                endpoints=len(self.endpoints),
            )

    async def _search(self, select: Callable[[], list[Replica[Stub]]]) -> list[Replica[Stub]]:
        """Return the selected replicas, after a refresh if none match."""
        if replicas := select():
            return replicas
        was_running = await self.refresh()
        replicas = select()
        # A round that began before this call may be outdated, and a timeout proves nothing. Refresh once more then.
        if not replicas and (was_running or any(endpoint.timed_out for endpoint in self.endpoints)):
            await self.refresh()
            replicas = select()
        return replicas

    def _ready_replicas(
        self,
        tag: str,
        *,
        same_model_as: model_pb2.ModelInfo | None = None,
        exclude: Collection[Endpoint[Stub]] = (),
    ) -> list[Replica[Stub]]:
        """Return the ready replicas of `tag`, preferably healthy ones.

        A replica is unhealthy while its endpoint is unresponsive or has ejected the model. Unhealthy replicas are
        returned only if there are no others.

        Args:
            tag: the model's tag.
            same_model_as: leave out other models of the same tag, which exist during a deployment.
            exclude: endpoints to leave out.
        """
        ready = [
            Replica(self, endpoint, info)
            for endpoint in self.endpoints
            if endpoint not in exclude
            and (info := endpoint.models.get(tag)) is not None
            and info.state == model_pb2.MODEL_STATE_READY
            and (same_model_as is None or _is_same_model(info, same_model_as))
        ]
        if same_model_as is None and (engine := self._engines.of(tag, (replica.info for replica in ready))) is not None:
            ready = [replica for replica in ready if replica.info.backend == engine]
        healthy = [
            replica for replica in ready if replica.endpoint.is_responsive and not replica.endpoint.is_ejected(tag)
        ]
        return healthy or ready

    def _choose(self, replicas: Sequence[Replica[Stub]], prefix: bytes | None) -> Replica[Stub]:
        by_address = {replica.endpoint.address: replica for replica in replicas}
        calls = {address: replica.endpoint.load for address, replica in by_address.items()}
        return by_address[least_busy(calls, next(self._turns)) if prefix is None else by_prefix(calls, prefix)]

    def _no_replica(self, tag: str) -> TandemError:
        """Return the reason why no replica of `tag` is ready."""
        if not self._num_responsive:
            return unreachable(self.name)
        info = self.info(tag)
        if info is None:
            served = {served for endpoint in self.endpoints for served in endpoint.models}
            return model_absent(self.name, tag, served)
        if info.state == model_pb2.MODEL_STATE_FAILED:
            return FailedPrecondition(
                f"The {self.name} service could not load {tag}, its log has the cause.", reason="MODEL_FAILED"
            )
        state = "LOADING" if info.state == model_pb2.MODEL_STATE_LOADING else "DRAINING"
        return Unavailable(
            f"The {self.name} service is {state.lower()} {tag}.", reason=f"MODEL_{state}", retry_after_s=1
        )

    @property
    def _num_responsive(self) -> int:
        return sum(endpoint.is_responsive for endpoint in self.endpoints)


def _is_same_model(one: model_pb2.ModelInfo, other: model_pb2.ModelInfo) -> bool:
    """Return whether two replicas give the same answers.

    They need the same weights and, for images, the same encoder, for tokens the same engine.
    """
    is_same_engine = one.backend == other.backend or not one.HasField("language")
    return is_same_engine and one.half_digest == other.half_digest and one.vision.encoder_id == other.vision.encoder_id
