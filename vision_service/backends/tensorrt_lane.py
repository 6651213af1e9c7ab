"""One CUDA stream with execution contexts and pinned buffers.

This module has not run yet: it needs a GPU that TensorRT for RTX takes, or TensorRT itself.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision_service.engines import EngineRecord, Library
from vision_service.model import OUTPUT, Inputs

# Element types of engines, by their names in the library.
_TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64}

Shapes = dict[str, tuple[int, ...]]


class Lane:
    """Runs batches of one engine, one at a time.

    Not thread-safe. Buffers have the largest size, so their addresses never change and CUDA graphs stay valid.
    """

    def __init__(
        self, library: Library, engine: Any, record: EngineRecord, *, device: torch.device, graph_sizes: Sequence[int]
    ) -> None:
        """Allocate buffers and capture CUDA graphs.

        Args:
            library: the engine's.
            engine: the deserialized engine.
            record: of the engine.
            device: the GPU, which is also the current one.
            graph_sizes: batch sizes with a graph, ascending.
        """
        largest = {name: shapes.max for name, shapes in record.profile.items()}
        self._library, self._engine = library, engine
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # Contexts of a lane never run at once, so they share their memory.
        self._memory = torch.empty(max(1, engine.device_memory_size_v2), dtype=torch.uint8, device=device)
        self._context = self._new_context()
        self._inputs = {name: _Buffer(prod(shape), self._type(name), device) for name, shape in largest.items()}
        num_values = prod(self._set_shapes(self._context, largest))
        self._output = torch.empty(num_values, dtype=self._type(OUTPUT), device=device)
        self._tokens = _Buffer(num_values, torch.bfloat16, device)
        self._graph_contexts: list[Any] = []  # each must outlive its graph
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        for size in graph_sizes:
            self._capture(size, _with_size(largest, size))

    def launch(self, inputs: Inputs) -> None:
        """Start a batch and return before it ends.

        Raises:
            RuntimeError: CUDA or the library reports a failure.
        """
        for name, array in inputs.items():
            self._inputs[name].host[: array.size].copy_(torch.from_numpy(np.ascontiguousarray(array)).flatten())
        shapes = {name: array.shape for name, array in inputs.items()}
        batch_size = min(shape[0] for shape in shapes.values())
        size = next((size for size in self._graphs if size >= batch_size), None)
        with torch.cuda.stream(self._stream):
            if size is None:
                self._enqueue(self._context, shapes)
            else:
                self._graphs[size].replay()  # rows beyond the batch hold older images, and nobody reads their tokens
            self._done.record()

    def collect(self, shape: tuple[int, ...]) -> Tensor:
        """Wait for the batch and return its visual tokens.

        They are bfloat16 on the host, in memory of the next batch.

        Args:
            shape: of the tokens.

        Raises:
            RuntimeError: CUDA reports a failure.
        """
        self._done.synchronize()
        return self._tokens.host[: prod(shape)].view(shape)

    def stop(self) -> None:
        """Wait for the end of the batch, after a failure."""
        try:
            self._stream.synchronize()
        except RuntimeError:
            return  # reported already

    def _enqueue(self, context: Any, shapes: Shapes) -> None:
        """Copy inputs, run the engine and copy the tokens back."""
        count = prod(self._set_shapes(context, shapes))
        for name, shape in shapes.items():
            buffer, length = self._inputs[name], prod(shape)
            buffer.device[:length].copy_(buffer.host[:length], non_blocking=True)
            context.set_tensor_address(name, buffer.device.data_ptr())
        context.set_tensor_address(OUTPUT, self._output.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("the library could not start the engine")
        tokens = self._output
        if tokens.dtype != torch.bfloat16:
            tokens = self._tokens.device
            tokens[:count].copy_(self._output[:count])
        self._tokens.host[:count].copy_(tokens[:count], non_blocking=True)

    def _capture(self, size: int, shapes: Shapes) -> None:
        """Capture the graph of one batch size, if possible.

        It has a context of its own, because another shape in the same context would invalidate it.
        """
        context = self._new_context()
        self._set_shapes(context, shapes)
        # TensorRT for RTX compiles some kernels while it runs, and says so.
        if self._library.is_portable and not context.is_stream_capturable(self._stream.cuda_stream):
            return
        with torch.cuda.stream(self._stream):
            self._enqueue(context, shapes)  # the library does the work of a new shape on its first run
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):  # other models go on
            self._enqueue(context, shapes)
        self._graph_contexts.append(context)
        self._graphs[size] = graph

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context(
            self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        return context

    def _set_shapes(self, context: Any, shapes: Shapes) -> tuple[int, ...]:
        """Set the shapes of inputs and return the tokens' shape."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise RuntimeError(f"input {name} of shape {list(shape)} is outside of the engine's profile")
        return tuple(context.get_tensor_shape(OUTPUT))

    def _type(self, name: str) -> torch.dtype:
        return _TYPES[self._engine.get_tensor_dtype(name).name]


def _with_size(shapes: Shapes, size: int) -> Shapes:
    return {name: (size, *shape[1:]) for name, shape in shapes.items()}


class _Buffer:
    """Flat memory of a tensor, on the GPU and pinned."""

    def __init__(self, num_values: int, dtype: torch.dtype, device: torch.device) -> None:
        self.host: Tensor = torch.empty(num_values, dtype=dtype, pin_memory=True)
        self.device: Tensor = torch.empty(num_values, dtype=dtype, device=device)
