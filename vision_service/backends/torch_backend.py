"""The vision half in eager torch, on CPU or GPU.

B batch, S image side in pixels, K visual tokens, D decoder width
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoint.config import ModelConfig
from vision_service.model import VisionHalf


class TorchBackend:
    """Runs the vision half with torch.

    `name` is part of the encoder id, as in `VisionBackend`.
    """

    name = "torch"

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Build on the meta device, then assign the loaded tensors. So the weights are in memory once, not twice.
        with torch.device("meta"):
            half = VisionHalf(config)
        half.load_state_dict(tensors, assign=True)
        self._half = half.to(device=device, dtype=dtype).eval()
        self._dtype = dtype
        self.device = str(device)
        self.precision = str(dtype).removeprefix("torch.")
        parameters = list(half.parameters())
        self.num_parameters = sum(parameter.numel() for parameter in parameters)
        self.num_weight_bytes = sum(parameter.nbytes for parameter in parameters)

    @torch.inference_mode()
    def encode(self, pixels_B3SS: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Return visual tokens, [B, K, D], as bfloat16 bit patterns."""
        tokens_BKD = self._half(torch.from_numpy(pixels_B3SS).to(device=self.device, dtype=self._dtype))
        bits_BKD: NDArray[np.uint16] = tokens_BKD.to(torch.bfloat16).contiguous().cpu().view(torch.uint16).numpy()
        return bits_BKD
