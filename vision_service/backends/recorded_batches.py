"""Batches of equal images on a GPU, recorded as CUDA graphs.

Launching the kernels of a vision transformer takes longer than running them for a few images. A recorded batch needs a
single launch, but always uses the memory and size of its recording.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor

from chassis.cuda_recorder import Run

# B images, S image side in pixels, K visual tokens, D their width

Model = Callable[[Tensor], Tensor]  # pixels [B, 3, S, S] to visual tokens [B, K, D]

_log = structlog.get_logger()

_SIZES = (1, 2, 4, 8, 16)  # of recorded batches. Larger ones keep a GPU busy longer than their launches take.


class RecordedBatches:
    """Runs a model of images of one size.

    Pixels and tokens pass through pinned memory. Thread-safe: one batch runs at a time.
    """

    def __init__(self, model: Model, *, dtype: torch.dtype, device: torch.device, record: Callable[[Run], Run]) -> None:
        """Use `record` to make batches faster.

        Args:
            model: any module of torch in `dtype`.
            dtype: of its pixels.
            device: its GPU.
            record: returns an equivalent of a batch, such as the replay of `CudaRecorder`.
        """
        self._model, self._dtype, self._device, self._record = model, dtype, device, record
        self._batches: dict[int, tuple[_Batch, Run]] = {}
        self._lock = threading.Lock()
        self._works = True

    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return each image's visual tokens [K, D], bfloat16 as bit patterns."""
        with self._lock:
            size = next((size for size in _SIZES if size >= len(images)), None)
            tokens_BKD = self._replay(images, size) if size is not None and self._works else None
            if tokens_BKD is None:
                batch = _Batch(self._model, len(images), images[0].shape, self._dtype, self._device)
                batch.fill(images)
                tokens_BKD = batch.collect(batch.run())
            # Copy each image's tokens. A view would keep the memory of the whole batch.
            return [tokens.clone().view(torch.uint16).numpy() for tokens in tokens_BKD[: len(images)]]

    def _replay(self, images: Sequence[NDArray[np.float32]], size: int) -> Tensor | None:
        """Return the tokens of a recorded batch.

        None if it cannot be recorded.
        """
        recorded = self._batches.get(size)
        if recorded is None:
            batch = _Batch(self._model, size, images[0].shape, self._dtype, self._device)
            try:
                recorded = batch, self._record(batch.run)
            except RuntimeError:  # torch ran out of memory or cannot record an operation. Better slow than failing.
                _log.exception("cuda graphs disabled: recording failed", images=size)
                self._works = False
                return None
            self._batches[size] = recorded
        batch, run = recorded
        batch.fill(images)
        return batch.collect(run())


class _Batch:
    """A batch of a fixed size, in fixed memory."""

    def __init__(
        self, model: Model, size: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._model, self._dtype, self._device = model, dtype, device
        self._is_pinned = device.type == "cuda"
        self._host = torch.empty(size, *shape, pin_memory=self._is_pinned)
        self._pixels = torch.empty(size, *shape, device=device)
        self._host_tokens: Tensor | None = None

    def fill(self, images: Sequence[NDArray[np.float32]]) -> None:
        """Copy pixels to the device.

        Rows beyond the images hold any numbers, and nobody reads their tokens.
        """
        for row, image in zip(self._host, images, strict=False):
            row.copy_(torch.from_numpy(image))
        self._pixels.copy_(self._host, non_blocking=True)

    def run(self) -> Tensor:
        """Compute the batch in the fixed memory.

        Returns its tokens [B, K, D] on the device.
        """
        return self._model(self._pixels.to(self._dtype)).to(torch.bfloat16)

    def collect(self, tokens_BKD: Tensor) -> Tensor:
        """Copy the tokens to the host, and wait."""
        if self._host_tokens is None:
            self._host_tokens = torch.empty_like(
                tokens_BKD, device="cpu", pin_memory=self._is_pinned, memory_format=torch.contiguous_format
            )
        self._host_tokens.copy_(tokens_BKD, non_blocking=True)
        if self._is_pinned:
            torch.cuda.current_stream(self._device).synchronize()
        return self._host_tokens
