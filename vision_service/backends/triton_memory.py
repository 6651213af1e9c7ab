"""Shared memory that carries inputs to a Triton on the same host.

Only inputs travel through it. Triton may read a region after its call was cancelled, and a region is reused then. So it
may compute tokens of another image, but only for a call that nobody awaits. Outputs would be written to, so they travel
in messages.

CUDA shared memory has not run yet: it needs a Triton server and a GPU on one machine.
"""

import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

R = TypeVar("R")
Call = Callable[[], Awaitable[R]]
MemoryKind = Literal["system", "cuda"]

_MIN_REGION_BYTES = 2**20
_DEVICE = 0  # CUDA regions lie on the first visible GPU
_TIMEOUT_S = 5.0
_names = itertools.count()  # a region registered anew gets a fresh name, so it never meets its former self


@dataclass(slots=True)
class _Region:
    handle: Any
    key: str  # name in the system
    num_bytes: int
    registered: str = ""  # name in Triton. Empty if Triton does not know it


class SharedInputs:
    """A pool of regions, one for each call in flight.

    For one event loop.
    """

    def __init__(self, client: InferenceServerClient, kind: MemoryKind) -> None:
        """Start without regions.

        Args:
            client: to register regions with.
            kind: 'system' needs Triton in the same IPC namespace, 'cuda' on the same GPU as well.
        """
        self._client, self._kind = client, kind
        self._free: list[_Region] = []
        self._all: list[_Region] = []
        self._functions: Any = _functions(kind)

    async def run(self, tensors: Sequence[tuple[InferInput, NDArray[Any]]], call: Call[R]) -> R:
        """Make a call whose tensors lie in a region.

        A Triton that was restarted has forgotten the region, so it is registered anew and the call made again.

        Args:
            tensors: the inputs, and their values.
            call: makes the call.

        Raises:
            InferenceServerException: Triton cannot register the region, or the call failed.
        """
        region = self._take(sum(array.nbytes for _, array in tensors))
        try:
            self._functions.set_shared_memory_region(region.handle, [np.ascontiguousarray(one) for _, one in tensors])
            try:
                await self._refer(region, tensors)
                return await call()
            except InferenceServerException as error:
                if "shared memory region" not in (error.message() or ""):
                    raise
                region.registered = ""
                await self._refer(region, tensors)
                return await call()
        finally:
            self._free.append(region)

    async def close(self) -> None:
        """Unregister and free all regions."""
        for region in self._all:
            if region.registered:
                with suppress(InferenceServerException):  # Triton may have ended
                    unregister = getattr(self._client, f"unregister_{self._kind}_shared_memory")
                    await unregister(region.registered, client_timeout=_TIMEOUT_S)
            self._functions.destroy_shared_memory_region(region.handle)
        self._all.clear()
        self._free.clear()

    def _take(self, num_bytes: int) -> _Region:
        for index, region in enumerate(self._free):
            if region.num_bytes >= num_bytes:
                return self._free.pop(index)
        return self._create(max(_MIN_REGION_BYTES, 1 << (num_bytes - 1).bit_length()))

    def _create(self, num_bytes: int) -> _Region:
        key = f"tandem-inputs-{os.getpid()}-{next(_names)}"
        if self._kind == "system":
            handle = self._functions.create_shared_memory_region(key, key, num_bytes, create_only=True)
        else:
            handle = self._functions.create_shared_memory_region(key, num_bytes, _DEVICE)
        region = _Region(handle, key, num_bytes)
        self._all.append(region)
        return region

    async def _refer(self, region: _Region, tensors: Sequence[tuple[InferInput, NDArray[Any]]]) -> None:
        """Let tensors refer to a region, one behind the other."""
        await self._register(region)
        offset = 0
        for tensor, array in tensors:
            tensor.set_shared_memory(region.registered, array.nbytes, offset)
            offset += array.nbytes

    async def _register(self, region: _Region) -> None:
        if region.registered:
            return
        name = f"{region.key}-{next(_names)}"
        if self._kind == "system":
            await self._client.register_system_shared_memory(
                name, region.key, region.num_bytes, client_timeout=_TIMEOUT_S
            )
        else:
            raw = self._functions.get_raw_handle(region.handle)
            await self._client.register_cuda_shared_memory(
                name, raw, _DEVICE, region.num_bytes, client_timeout=_TIMEOUT_S
            )
        region.registered = name


def _functions(kind: MemoryKind) -> Any:
    """Return tritonclient's module for a kind of memory."""
    if kind == "system":
        from tritonclient.utils import shared_memory

        return shared_memory
    from tritonclient.utils import cuda_shared_memory  # needs cuda-python

    return cuda_shared_memory
