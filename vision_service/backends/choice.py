"""The list of backends, and the function that opens one."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from checkpoint.families import ModelConfig
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
    """Return a backend with the weights loaded.

    Args:
        name: value of `--backend`.
        config: the checkpoint's configuration.
        tensors: the weights of the vision half by name, on `device`, of type `dtype`.
        dtype: type of the arithmetic.
        device: where to compute.

    Raises:
        ValueError: there is no backend of this name.
    """
    # Imported on demand, so that a process loads the libraries of its own backend only.
    if name == "torch":
        from vision_service.backends.torch_backend import TorchBackend

        return TorchBackend(config, tensors, dtype=dtype, device=device)
    raise ValueError(f"unknown backend {name!r}, choose one of: {', '.join(get_args(BackendName))}")
