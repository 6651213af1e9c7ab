"""The models of one process: loaded once, leased to requests, unloaded after the last of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import structlog

from chassis.errors import FailedPrecondition, Internal, NotFound, TandemError, Unavailable
from chassis.health import Health
from tandem.v1 import model_pb2

LOADING = model_pb2.MODEL_STATE_LOADING
READY = model_pb2.MODEL_STATE_READY
DRAINING = model_pb2.MODEL_STATE_DRAINING
FAILED = model_pb2.MODEL_STATE_FAILED

# A tag that names nothing leaves nothing behind: else asking for a million of them would fill the table.
_NAMES_NOTHING = frozenset({"UNKNOWN_TAG", "BAD_TAG"})

_log = structlog.get_logger()


class HostedModel(Protocol):
    """What a service loads: something that describes itself and can be closed."""

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model; the host fills in `tag`, `state` and `load_s`."""
        ...

    async def close(self) -> None:
        """Free what the model holds. Called once, when no request uses it."""
        ...


M = TypeVar("M", bound=HostedModel)


class _Slot(Generic[M]):
    """One tag of the table."""

    def __init__(self, tag: str) -> None:
        self.info = model_pb2.ModelInfo(tag=tag, state=LOADING)
        self.model: M | None = None
        self.error: TandemError | None = None
        self.loading: asyncio.Task[None] | None = None
        self.draining: asyncio.Task[None] | None = None
        self.num_leases = 0
        self.unused = asyncio.Event()
        self.unused.set()


class ModelHost(Generic[M]):
    """The models of one process by tag. For one event loop; every method is called on it."""

    def __init__(self, *, load: Callable[[str], Awaitable[M]], health: Health, service_name: str) -> None:
        """Start empty.

        Args:
            load: reads the model of a tag; raises a TandemError that says why it cannot.
            health: told of every model as `<service_name>/<tag>`.
            service_name: full name of the service, 'tandem.v1.VisionService'.
        """
        self._load_model = load
        self._health = health
        self._service_name = service_name
        self._slots: dict[str, _Slot[M]] = {}
        self._closed = False

    async def load(self, tag: str) -> model_pb2.ModelInfo:
        """Load the model of `tag` and return it ready; callers at the same time share one load.

        A caller that is cancelled leaves the load running.

        Raises:
            TandemError: what kept the model from loading; it stays listed as failed, and the next call tries again.
            Unavailable: reason 'MODEL_DRAINING', the model is being unloaded; 'STOPPING', the process is.
        """
        if self._closed:
            raise Unavailable("The process is stopping.", reason="STOPPING")
        slot = self._slots.get(tag)
        if slot is not None and slot.info.state == DRAINING:
            raise _draining(tag)
        if slot is None or slot.info.state == FAILED:
            slot = self._slots[tag] = _Slot(tag)
            slot.loading = asyncio.create_task(self._run_load(tag, slot))
        if slot.loading is not None:
            await asyncio.shield(slot.loading)
        if slot.error is not None:
            raise slot.error
        return _copy(slot.info)

    async def unload(self, tag: str) -> None:
        """Refuse new leases of `tag`, wait until the last one ends, close the model and forget it.

        A model that is loading is waited for first. A caller that is cancelled leaves the unloading running.

        Raises:
            NotFound: reason 'UNKNOWN_TAG', the process holds no such model.
        """
        await self._retire(tag, self._slot(tag))

    @contextmanager
    def lease(self, tag: str) -> Iterator[M]:
        """Hold the model of `tag` for the length of the block; it is not closed before.

        Raises:
            NotFound: reason 'UNKNOWN_TAG', the process holds no such model.
            Unavailable: reason 'MODEL_LOADING' or 'MODEL_DRAINING', with a retry delay.
            FailedPrecondition: reason 'MODEL_FAILED', the model could not be loaded.
        """
        slot = self._slot(tag)
        model = _usable(tag, slot)
        slot.num_leases += 1
        slot.unused.clear()
        try:
            yield model
        finally:
            slot.num_leases -= 1
            if slot.num_leases == 0:
                slot.unused.set()

    def get(self, tag: str) -> model_pb2.ModelInfo:
        """Describe the model of `tag`.

        Raises:
            NotFound: reason 'UNKNOWN_TAG', the process holds no such model.
        """
        return _copy(self._slot(tag).info)

    def list(self) -> list[model_pb2.ModelInfo]:
        """Describe every model, in the order of their tags."""
        return [_copy(self._slots[tag].info) for tag in sorted(self._slots)]

    async def close(self) -> None:
        """Refuse further loads and unload every model."""
        self._closed = True
        await asyncio.gather(*(self._retire(tag, slot) for tag, slot in list(self._slots.items())))

    def _slot(self, tag: str) -> _Slot[M]:
        slot = self._slots.get(tag)
        if slot is None:
            raise NotFound("This process holds no model of that tag.", reason="UNKNOWN_TAG", field="tag")
        return slot

    async def _run_load(self, tag: str, slot: _Slot[M]) -> None:
        """Bring `slot` from LOADING to READY or FAILED. Never raises: the error is kept for those who wait."""
        started = time.perf_counter()
        await self._set_health(tag, serving=False)
        try:
            slot.model = await self._load_model(tag)
            slot.info.CopyFrom(slot.model.info())
            slot.info.tag, slot.info.load_s = tag, time.perf_counter() - started
            slot.info.state = READY
        except TandemError as error:
            _log.warning("model failed to load", tag=tag, reason=error.reason, error=error.local_message)
            slot.error = error
        except Exception:
            _log.exception("model failed to load", tag=tag)
            slot.error = Internal("The model could not be loaded; the log says why.", reason="MODEL_LOAD_FAILED")
        slot.loading = None
        if slot.error is None:
            _log.info("model ready", tag=tag, load_s=round(slot.info.load_s, 3))
            await self._set_health(tag, serving=True)
        elif slot.error.reason in _NAMES_NOTHING:
            del self._slots[tag]
        else:
            slot.info.state = FAILED

    async def _retire(self, tag: str, slot: _Slot[M]) -> None:
        """Drain `slot` and wait for it, with whoever else does."""
        if slot.loading is not None:
            await asyncio.shield(slot.loading)
        if self._slots.get(tag) is not slot:
            return  # its load failed and left nothing, or another caller retired it meanwhile
        if slot.draining is None:
            slot.info.state = DRAINING
            slot.draining = asyncio.create_task(self._run_drain(tag, slot))
        await asyncio.shield(slot.draining)

    async def _run_drain(self, tag: str, slot: _Slot[M]) -> None:
        """Wait for the leases of `slot`, close its model, and drop it from the table."""
        await self._set_health(tag, serving=False)
        await slot.unused.wait()
        try:
            if slot.model is not None:
                await slot.model.close()
        except Exception:
            _log.exception("model failed to close", tag=tag)
        finally:
            del self._slots[tag]
        _log.info("model unloaded", tag=tag)

    async def _set_health(self, tag: str, serving: bool) -> None:
        await self._health.set(f"{self._service_name}/{tag}", serving)


class ModelCalls(Generic[M]):
    """The four model calls of a service, over `self.models`; mixed into both stages' servicers."""

    models: ModelHost[M]

    async def GetModel(self, request: model_pb2.GetModelRequest, context: object) -> model_pb2.GetModelResponse:  # noqa: N802
        """Describe one model."""
        return model_pb2.GetModelResponse(model=self.models.get(request.tag))

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: object) -> model_pb2.ListModelsResponse:  # noqa: N802
        """Describe every model."""
        return model_pb2.ListModelsResponse(models=self.models.list())

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: object) -> model_pb2.LoadModelResponse:  # noqa: N802
        """Load a model and answer when it is ready."""
        return model_pb2.LoadModelResponse(model=await self.models.load(request.tag))

    async def UnloadModel(  # noqa: N802
        self, request: model_pb2.UnloadModelRequest, context: object
    ) -> model_pb2.UnloadModelResponse:
        """Unload a model and answer when its memory is free."""
        await self.models.unload(request.tag)
        return model_pb2.UnloadModelResponse()


def _usable(tag: str, slot: _Slot[M]) -> M:
    if slot.info.state == LOADING:
        raise Unavailable("The model is being loaded.", reason="MODEL_LOADING", retry_after_s=1)
    if slot.info.state == DRAINING:
        raise _draining(tag)
    if slot.model is None:
        raise FailedPrecondition("The model could not be loaded.", reason="MODEL_FAILED", field="tag")
    return slot.model


def _draining(tag: str) -> Unavailable:
    return Unavailable(f"The model {tag} is being unloaded.", reason="MODEL_DRAINING", retry_after_s=1)


def _copy(info: model_pb2.ModelInfo) -> model_pb2.ModelInfo:
    copy = model_pb2.ModelInfo()
    copy.CopyFrom(info)
    return copy
