"""Random models, made on the device that runs them."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from checkpoint.compressed_tensors import stored_tensors
from checkpoint.families import Half, LanguageConfig, ModelConfig, Quantization, Scheme, TensorSpec, layout
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.rounding import Grid, to_nearest

_GROUP = 32  # inputs that share a scale, with 4 bits a weight


class DeviceTensors(Mapping[str, Tensor]):
    """Random tensors of a model, made on its device.

    Making 6.7 billion parameters takes a GPU less than a second and a CPU more than a minute.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._specs = {spec.name: spec for spec in layout(config)}
        self._dtype, self._device, self._seed = dtype, device, seed
        self._order = {name: index for index, name in enumerate(self._specs)}

    def __getitem__(self, name: str) -> Tensor:
        spec = self._specs[name]
        if spec.kind in ("scale", "bias"):
            return torch.full(spec.shape, float(spec.kind == "scale"), dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(1000 * self._seed + self._order[name])
        tensor = torch.empty(spec.shape, dtype=self._dtype, device=self._device)
        return tensor.normal_(0.0, _std(spec), generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def of(self, half: Half) -> dict[str, Tensor]:
        """Return the tensors of one half."""
        return {name: self[name] for name, spec in self._specs.items() if spec.half == half}


def decoder_tensors(config: LanguageConfig, *, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Return random tensors of a decoder."""
    model = RESAMPLER_PRESETS["tiny"].model_copy(update={"language": config})  # its vision half is not made
    return DeviceTensors(model, dtype=dtype, device=device).of("language")


def varied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that make answers depend on the whole prompt.

    With the usual scale of new weights, all tokens are about equally likely.
    """
    return {name: tensor if "norm" in name else tensor * 5 for name, tensor in tensors.items()}


def low_bit(
    config: LanguageConfig, tensors: Mapping[str, Tensor], scheme: Scheme
) -> tuple[LanguageConfig, dict[str, Tensor]]:
    """Return a decoder with its matrices rounded to few bits."""
    group = None if scheme == "w8a8" else _GROUP
    fields = {**config.model_dump(), "quantization": Quantization(scheme=scheme, group=group)}
    rounded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and ".layers." in name:
            weight = to_nearest(tensor, Grid(scheme, group or tensor.shape[1]))
            rounded |= stored_tensors(name.removesuffix(".weight"), weight)
        else:
            rounded[name] = tensor
    return LanguageConfig.model_validate(fields), rounded


def _std(spec: TensorSpec) -> float:
    # Outputs of products keep the scale of their inputs, in models of any width.
    return 0.02 if spec.kind == "embedding" or len(spec.shape) != 2 else 0.5 / math.sqrt(spec.shape[1])
