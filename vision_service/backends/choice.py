"""Choose the backend that runs a vision half. The only place that names them."""

from collections.abc import Mapping
from typing import Literal

import torch

from checkpoint.config import ModelConfig
from vision_service.backends.interface import VisionBackend

BackendName = Literal["torch"]


def open_backend(
    name: BackendName,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> VisionBackend:
    """Return the backend of that name, holding the weights.

    Args:
        name: the setting `--backend`.
        config: the checkpoint's configuration.
        tensors: the weights of the vision half by name, on `device` and of type `dtype`.
        dtype: type of the arithmetic.
        device: where to compute.
    """
    # Imported here, so that a process loads the libraries of its own backend only.
    if name == "torch":
        from vision_service.backends.torch_backend import TorchBackend

        return TorchBackend(config, tensors, dtype=dtype, device=device)
    raise ValueError(f"there is no backend {name!r}")
