"""The vision half in torch, on CPU or GPU."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chassis.cuda_recorder import CudaRecorder
from checkpoint.families import ModelConfig
from vision_service.backends.recorded_batches import RecordedBatches
from vision_service.kernels import accelerate
from vision_service.model import VisionHalf, build_vision_model


class TorchBackend:
    """Runs the vision half with torch.

    `name` is part of the encoder id, as in `VisionBackend`.
    """

    name = "torch"
    export_digest = b""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Build on the meta device, then assign the loaded tensors. So the weights are in memory once, not twice.
        with torch.device("meta"):
            half = self._model = build_vision_model(config)
        half.load_state_dict(tensors, assign=True)
        half.to(device=device, dtype=dtype).eval()
        self._dtype = dtype
        self.device = str(device)
        self.precision = str(dtype).removeprefix("torch.")
        parameters = list(half.parameters())
        self.num_parameters = sum(parameter.numel() for parameter in parameters)
        self.num_weight_bytes = sum(parameter.nbytes for parameter in parameters)
        if dtype == torch.bfloat16 and device.type == "cpu":
            accelerate(half)
        self._batches: RecordedBatches | None = None
        if device.type == "cuda" and isinstance(half, VisionHalf):  # all its images have one size
            record = CudaRecorder(device)
            self._batches = RecordedBatches(half, dtype=dtype, device=device, record=record)

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return each image's visual tokens, [N, levels x D], as bit patterns."""
        if self._batches is not None:
            return self._batches.encode(images)
        pixels = [torch.from_numpy(image).to(device=self.device, dtype=self._dtype) for image in images]
        # Copy each image's tokens. A view would keep the memory of the whole batch.
        return [
            tokens.to(torch.bfloat16).cpu().clone().view(torch.uint16).numpy() for tokens in self._model.encode(pixels)
        ]
