"""Load the models of a process, lease them and unload them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, TypeVar, runtime_checkable

import structlog

from chassis.errors import FailedPrecondition, Internal, NotFound, TandemError, Unavailable
from chassis.health import Health
from chassis.vital import vital
from tandem.v1 import model_pb2

LOADING = model_pb2.MODEL_STATE_LOADING
READY = model_pb2.MODEL_STATE_READY
DRAINING = model_pb2.MODEL_STATE_DRAINING
FAILED = model_pb2.MODEL_STATE_FAILED

# Do not list tags that failed for these reasons. Otherwise requests for unknown tags would fill the table.
_NOT_LISTED = frozenset({"UNKNOWN_TAG", "BAD_TAG"})

_WATCH_S = 1.0  # between two looks at the other process of a model

_log = structlog.get_logger()


class HostedModel(Protocol):
    """A loaded model that can describe itself and close."""

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model and its load now.

        The host sets `tag`, `state` and `load_s`.
        """
        ...

    async def close(self) -> None:
        """Free the model's memory. Called once, after the last lease."""
        ...


@runtime_checkable
class DependentModel(Protocol):
    """A model that depends on another process."""

    async def is_ready(self) -> bool:
        """Return whether the other process can work now. Never raises."""
        ...


M = TypeVar("M", bound=HostedModel)


class _Slot(Generic[M]):
    """State of one tag."""

    def __init__(self, tag: str, attempt: asyncio.Future[M]) -> None:
        self.attempt = attempt  # to load the model
        self.info = model_pb2.ModelInfo(tag=tag, state=LOADING)
        self.model: M | None = None
        self.error: TandemError | None = None
        self.loading: asyncio.Task[None] | None = None
        self.draining: asyncio.Task[None] | None = None
        self.watching: asyncio.Task[None] | None = None
        self.num_leases = 0
        self.unused = asyncio.Event()
        self.unused.set()


class ModelHost(Generic[M]):
    """Models of one process, by tag. For one event loop."""

    def __init__(self, *, load: Callable[[str], Awaitable[M]], health: Health, service_name: str) -> None:
        """Start empty.

        Args:
            load: loads the model of a tag, or raises a TandemError.
            health: reports each model as `<service_name>/<tag>`.
            service_name: full name of the service, such as 'tandem.v1.VisionService'.
        """
        self._load_model = load
        self._health = health
        self._health_name = f"{service_name}/{{}}".format  # of a tag
        self._slots: dict[str, _Slot[M]] = {}
        self._closed = False

    async def load(self, tag: str) -> model_pb2.ModelInfo:
        """Load the model of `tag` and return its description.

        Concurrent callers share one load. Cancelling a caller does not stop the load, but `close` does.

        Raises:
            TandemError: the load failed. The model is listed as failed, and the next call retries.
            Unavailable: reason 'MODEL_DRAINING' while the model is unloaded, 'STOPPING' while the process stops.
        """
        if self._closed:
            raise _stopping()
        slot = self._slots.get(tag)
        if slot is not None and slot.info.state == DRAINING:
            raise _draining(tag)
        if slot is None or slot.info.state == FAILED:
            slot = self._slots[tag] = _Slot(tag, asyncio.ensure_future(self._load_model(tag)))
            slot.loading = asyncio.create_task(self._run_load(tag, slot))
        if slot.loading is not None:
            await asyncio.shield(slot.loading)
        if slot.error is not None:
            raise slot.error
        return _describe(slot)

    async def unload(self, tag: str) -> None:
        """Drain the leases of `tag`, then remove its model.

        A load in flight is finished first. Cancelling a caller does not stop the unloading.

        Raises:
            NotFound: reason 'UNKNOWN_TAG', this process has no such model.
        """
        await self._retire(tag, self._slot(tag))

    @contextmanager
    def lease(self, tag: str) -> Iterator[M]:
        """Yield the model of `tag`, loaded until the block ends.

        Raises:
            NotFound: reason 'UNKNOWN_TAG', this process has no such model.
            Unavailable: reason 'MODEL_LOADING' or 'MODEL_DRAINING', with a retry delay.
            FailedPrecondition: reason 'MODEL_FAILED', the model failed to load.
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
            NotFound: reason 'UNKNOWN_TAG', this process has no such model.
        """
        return _describe(self._slot(tag))

    def list(self) -> list[model_pb2.ModelInfo]:
        """Describe all models, sorted by tag."""
        return [_describe(self._slots[tag]) for tag in sorted(self._slots)]

    async def close(self) -> None:
        """Refuse and cancel loads, and unload every model."""
        self._closed = True
        for slot in self._slots.values():
            slot.attempt.cancel()
        await asyncio.gather(*(self._retire(tag, slot) for tag, slot in list(self._slots.items())))

    def _slot(self, tag: str) -> _Slot[M]:
        slot = self._slots.get(tag)
        if slot is None:
            choices = f", or use {' or '.join(sorted(self._slots))}" if self._slots else ""
            message = f"This process has no model of that tag: load it{choices}."
            raise NotFound(message, reason="UNKNOWN_TAG", field="tag")
        return slot

    async def _run_load(self, tag: str, slot: _Slot[M]) -> None:
        """Bring `slot` from LOADING to READY or FAILED.

        It never raises. `slot` keeps the error for the callers.
        """
        started = time.perf_counter()
        self._health.set(self._health_name(tag), serving=False)
        try:
            slot.model = await slot.attempt
            slot.info.load_s = time.perf_counter() - started
            slot.info.state = READY
        except asyncio.CancelledError:
            slot.error = _stopping()
        except TandemError as error:
            _log.warning("model failed to load", tag=tag, reason=error.reason, error=error.local_message)
            slot.error = error
        except Exception:
            _log.exception("model failed to load", tag=tag)
            slot.error = Internal("The model failed to load: see the log of the service.", reason="MODEL_LOAD_FAILED")
        slot.loading = None
        if slot.error is None:
            _log.info("model ready", tag=tag, load_s=round(slot.info.load_s, 3))
            self._health.set(self._health_name(tag), serving=True)
            model: object = slot.model
            if isinstance(model, DependentModel):
                slot.watching = asyncio.create_task(self._watch(tag, model))
        elif slot.error.reason in _NOT_LISTED:
            del self._slots[tag]
            self._health.remove(self._health_name(tag))
        else:
            slot.info.state = FAILED

    async def _retire(self, tag: str, slot: _Slot[M]) -> None:
        """Drain `slot` and wait for the end.

        Concurrent callers share one drain.
        """
        if slot.loading is not None:
            await asyncio.shield(slot.loading)
        if self._slots.get(tag) is not slot:
            return  # its load failed, or another caller has unloaded it
        if slot.draining is None:
            slot.info.state = DRAINING
            slot.draining = asyncio.create_task(self._run_drain(tag, slot))
        await asyncio.shield(slot.draining)

    async def _run_drain(self, tag: str, slot: _Slot[M]) -> None:
        """Close and remove `slot` after its last lease."""
        if slot.watching is not None:
            slot.watching.cancel()
            await asyncio.wait([slot.watching])
        self._health.set(self._health_name(tag), serving=False)
        await slot.unused.wait()
        try:
            if slot.model is not None:
                await slot.model.close()
        except Exception:
            _log.exception("model failed to close", tag=tag)
        finally:
            del self._slots[tag]
        _log.info("model unloaded", tag=tag)

    async def _watch(self, tag: str, model: DependentModel) -> None:
        """Let health follow the other process of a model."""
        reported = True
        with suppress(Exception), vital(f"watch of {tag}"):
            while True:
                await asyncio.sleep(_WATCH_S)
                ready = await model.is_ready()
                if ready is reported:
                    continue
                _log.warning("model ready again" if ready else "model not ready", tag=tag)
                self._health.set(self._health_name(tag), serving=ready)
                reported = ready


class ModelCalls(Generic[M]):
    """Mixin with the four model RPCs, served from `self.models`."""

    models: ModelHost[M]

    async def GetModel(self, request: model_pb2.GetModelRequest, context: object) -> model_pb2.GetModelResponse:  # noqa: N802
        """Describe one model."""
        return model_pb2.GetModelResponse(model=self.models.get(request.tag))

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: object) -> model_pb2.ListModelsResponse:  # noqa: N802
        """Describe all models."""
        return model_pb2.ListModelsResponse(models=self.models.list())

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: object) -> model_pb2.LoadModelResponse:  # noqa: N802
        """Load a model and respond when it is ready."""
        return model_pb2.LoadModelResponse(model=await self.models.load(request.tag))

    async def UnloadModel(  # noqa: N802
        self, request: model_pb2.UnloadModelRequest, context: object
    ) -> model_pb2.UnloadModelResponse:
        """Unload a model and respond when its memory is free."""
        await self.models.unload(request.tag)
        return model_pb2.UnloadModelResponse()


def _usable(tag: str, slot: _Slot[M]) -> M:
    if slot.info.state == LOADING:
        raise Unavailable(f"The model {tag} is still loading: retry soon.", reason="MODEL_LOADING", retry_after_s=1)
    if slot.info.state == DRAINING:
        raise _draining(tag)
    if slot.model is None:
        cause = "" if slot.error is None else f" ({slot.error.message.removesuffix('.')})"
        raise FailedPrecondition(
            f"The model {tag} failed to load{cause}: load it again.", reason="MODEL_FAILED", field="tag"
        )
    return slot.model


def _stopping() -> Unavailable:
    return Unavailable("The process is stopping: load the model on another replica.", reason="STOPPING")


def _draining(tag: str) -> Unavailable:
    return Unavailable(
        f"The model {tag} is being unloaded: retry on another replica.", reason="MODEL_DRAINING", retry_after_s=1
    )


def _describe(slot: _Slot[M]) -> model_pb2.ModelInfo:
    """Return the model's own description, with what the host knows."""
    info = model_pb2.ModelInfo()
    if slot.model is not None:
        info.CopyFrom(slot.model.info())
    info.MergeFrom(slot.info)
    return info
