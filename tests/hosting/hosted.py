"""A model host whose loads wait for the test."""

import asyncio

from chassis.health import Health
from hosting.models import ModelHost
from tandem.v1 import model_pb2

SERVICE = "tandem.v1.VisionService"
TAG = "tiny-v1.0.0"


class Model:
    """A fake model that counts calls of `close`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.num_closed = 0

    def info(self) -> model_pb2.ModelInfo:
        return model_pb2.ModelInfo(tag=self.tag, num_parameters=7)

    async def close(self) -> None:
        self.num_closed += 1


class Loader:
    """A loader that waits. `finish` ends the oldest load."""

    def __init__(self) -> None:
        self.made: list[Model] = []
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.called = asyncio.Event()

    async def __call__(self, tag: str) -> Model:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((tag, gate))
        self.called.set()
        try:
            await gate
        except asyncio.CancelledError:
            self.waiting.remove((tag, gate))
            raise
        self.made.append(Model(tag))
        return self.made[-1]

    def finish(self, error: Exception | None = None) -> None:
        _tag, gate = self.waiting.pop(0)
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)


async def settle() -> None:
    """Run all tasks until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def make_host() -> tuple[ModelHost[Model], Loader, Health]:
    loader, health = Loader(), Health()
    return ModelHost(load=loader, health=health, service_name=SERVICE), loader, health


def serving(health: Health, tag: str = TAG) -> int:
    return health.status(f"{SERVICE}/{tag}")


async def loaded(host: ModelHost[Model], loader: Loader, tag: str = TAG) -> model_pb2.ModelInfo:
    loading = asyncio.create_task(host.load(tag))
    await settle()
    loader.finish()
    return await loading
