"""The replicas of a stage: which endpoint serves which tag, learnt by asking; and errors, made fit for clients."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog

from chassis.channels import ChannelTls, open_channel
from chassis.errors import DeadlineExceeded, FailedPrecondition, Internal, TandemError, Unavailable, from_rpc_error
from tandem.v1 import model_pb2

_ASK_TIMEOUT_S = 0.5

_log = structlog.get_logger()


class StageStub(Protocol):
    """What the stubs of both stages have in common."""

    ListModels: Any
    LoadModel: Any
    UnloadModel: Any


Stub = TypeVar("Stub", bound=StageStub)


@dataclass(frozen=True, slots=True)
class Replica(Generic[Stub]):
    """One model at one endpoint, ready to be called."""

    stub: Stub
    info: model_pb2.ModelInfo


class Endpoint(Generic[Stub]):
    """One endpoint and what it said last."""

    def __init__(self, stage: str, channel: grpc.aio.Channel, stub: Stub) -> None:
        self._stage = stage
        self.channel = channel
        self.stub = stub
        self.answers = False
        self.models: dict[str, model_pb2.ModelInfo] = {}

    async def ask(self) -> None:
        try:
            with errors_of(self._stage):
                answer = await self.stub.ListModels(model_pb2.ListModelsRequest(), timeout=_ASK_TIMEOUT_S)
        except TandemError:
            self.answers, self.models = False, {}
        else:
            self.answers, self.models = True, {info.tag: info for info in answer.models}


class Stage(Generic[Stub]):
    """All endpoints of one stage."""

    def __init__(
        self,
        name: str,
        targets: Sequence[str],
        make_stub: Callable[[grpc.aio.Channel], Stub],
        *,
        tls: ChannelTls | None = None,
    ) -> None:
        """Open the channels; nobody is asked yet.

        Args:
            name: what clients know it by: 'vision' or 'language'.
            targets: host:port of each endpoint.
            make_stub: makes the stage's stub on a channel.
            tls: how to secure the channels; None is plain text.

        Raises:
            FailedPrecondition: reason 'BAD_TLS'.
        """
        self.name = name
        channels = [open_channel(target, tls=tls) for target in targets]
        self.endpoints = [Endpoint(name, channel, make_stub(channel)) for channel in channels]
        self._turn = count()
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, tag: str) -> Replica[Stub]:
        """Return a replica that serves `tag`, in turn where there are several.

        Raises:
            Unavailable: nobody serves it now, but may soon.
            FailedPrecondition: reason 'MODEL_FAILED'.
        """
        replicas = self._ready(tag)
        if not replicas:
            await self.refresh()
            replicas = self._ready(tag)
        if not replicas:
            raise self._missing(tag)
        return replicas[next(self._turn) % len(replicas)]

    def info(self, tag: str) -> model_pb2.ModelInfo | None:
        """Describe the model of `tag` as it was last seen, a ready one before others; None where nobody holds it."""
        infos = [endpoint.models[tag] for endpoint in self.endpoints if tag in endpoint.models]
        return min(infos, key=lambda info: info.state != model_pb2.MODEL_STATE_READY, default=None)

    async def refresh(self) -> None:
        """Ask every endpoint for its models; callers at the same time share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._ask_all())
        await asyncio.shield(self._refreshing)

    async def close(self) -> None:
        """Close the channels; calls that still run are cancelled."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        await asyncio.gather(*(endpoint.channel.close(None) for endpoint in self.endpoints))

    async def _ask_all(self) -> None:
        before = self._reached()
        await asyncio.gather(*(endpoint.ask() for endpoint in self.endpoints))
        if self._reached() != before:
            _log.info("stage changed", stage=self.name, answering=self._reached(), endpoints=len(self.endpoints))

    def _reached(self) -> int:
        return sum(endpoint.answers for endpoint in self.endpoints)

    def _ready(self, tag: str) -> list[Replica[Stub]]:
        return [
            Replica(endpoint.stub, info)
            for endpoint in self.endpoints
            if (info := endpoint.models.get(tag)) is not None and info.state == model_pb2.MODEL_STATE_READY
        ]

    def _missing(self, tag: str) -> TandemError:
        """Say why no replica serves `tag`."""
        if not self._reached():
            return unreachable(self.name)
        info = self.info(tag)
        if info is None:
            return Unavailable(f"The {self.name} service does not hold {tag}.", reason="MODEL_ABSENT", retry_after_s=1)
        if info.state == model_pb2.MODEL_STATE_FAILED:
            return FailedPrecondition(f"The {self.name} service could not load {tag}.", reason="MODEL_FAILED")
        state = "LOADING" if info.state == model_pb2.MODEL_STATE_LOADING else "DRAINING"
        return Unavailable(
            f"The {self.name} service is {state.lower()} {tag}.", reason=f"MODEL_{state}", retry_after_s=1
        )


def unreachable(stage: str) -> Unavailable:
    """Return the error of a stage that does not answer."""
    return Unavailable(
        f"The {stage} service cannot be reached.", reason=f"{stage.upper()}_UNREACHABLE", retry_after_s=1
    )


@contextmanager
def errors_of(stage: str) -> Iterator[None]:
    """Translate what calls of a stage raise into errors a client may see.

    Typed errors pass on as they are. Those gRPC makes itself carry addresses, so they get words of our own.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _translate(stage, error) from None
    except asyncio.CancelledError:
        # gRPC raises this for a stream the other side reset, too; then nobody asked this task to stop.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise unreachable(stage) from None


def _translate(stage: str, rpc_error: grpc.RpcError) -> TandemError:
    error = from_rpc_error(rpc_error)
    metadata: Any = rpc_error.trailing_metadata()  # pairs; the published types say one opaque object
    if "grpc-status-details-bin" in dict(metadata or ()):
        return error  # one of ours, made for clients
    if error.code == grpc.StatusCode.UNAVAILABLE:
        return unreachable(stage)
    if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The time of the request ran out.")
    _log.error("stage failed", stage=stage, code=error.code.name, error=error.message)
    return Internal(f"The {stage} service failed.", reason=f"{stage.upper()}_FAILED")
