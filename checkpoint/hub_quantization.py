"""Read how a Hub release is quantized. Needs no torch.

The only place that lists which quantized releases can be imported.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from checkpoint.families import HEAD, LanguageConfig, Quantization, Scheme, decoder_layout
from checkpoint.weight_files import canonical_name

_SCHEMES: dict[tuple[int, int], Scheme] = {(8, 8): "w8a8", (4, 16): "w4a16", (4, 8): "w4a8"}

# A row of a matrix, instead of a group of its inputs, is -1 in some files.
_Group = Annotated[PositiveInt | None, BeforeValidator(lambda value: None if value == -1 else value)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Weights(_Form):
    """How compressed-tensors stores weights."""

    num_bits: Literal[4, 8]
    type: Literal["int"] = "int"
    strategy: Literal["channel", "group"]
    group_size: _Group = None
    symmetric: bool = True
    dynamic: Literal[False] = False
    actorder: Literal["weight", "static"] | None = None  # others store the groups out of order


class _Activations(_Form):
    """How compressed-tensors rounds activations."""

    num_bits: Literal[8]
    type: Literal["int"] = "int"
    strategy: Literal["token"]
    symmetric: Literal[True] = True
    dynamic: Literal[True]


class _Layers(_Form):
    targets: tuple[Literal["Linear"]]
    weights: _Weights
    input_activations: _Activations | None = None
    output_activations: None = None


class CompressedTensors(_Form):
    """`quantization_config` of a release by compressed-tensors."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["pack-quantized", "int-quantized"]
    config_groups: dict[str, _Layers] = Field(min_length=1, max_length=1)
    ignore: tuple[str, ...] = ()
    kv_cache_scheme: None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse schemes that no kernel computes."""
        weights, activations = self._group.weights, self._group.input_activations
        if weights.num_bits == 8 and activations is None:
            raise ValueError("weights of 8 bits with activations of 16 bits cannot be imported")
        if (weights.num_bits == 8) != (self.format == "int-quantized"):
            raise ValueError(f"weights of {weights.num_bits} bits are not stored as {self.format}")
        return self

    @property
    def _group(self) -> _Layers:
        return next(iter(self.config_groups.values()))

    def quantization(self, language: LanguageConfig) -> Quantization:
        """Return it in our form.

        Args:
            language: the decoder, without quantization.
        """
        weights = self._group.weights
        activations = 16 if self._group.input_activations is None else 8  # bits
        modules = [spec.name.removesuffix(".weight") for spec in decoder_layout(language) if _is_matrix(spec.kind)]
        left_out = [module for module in modules if self._is_ignored(module)]
        head = HEAD.removesuffix(".weight")
        has_head = not language.tied_embeddings and head not in left_out
        if has_head and weights.num_bits == 4:
            raise ValueError("a head with 4 bits a weight cannot be imported")
        return Quantization(
            scheme=_SCHEMES[weights.num_bits, activations],
            group=weights.group_size if weights.strategy == "group" else None,
            symmetric=weights.symmetric,
            head=has_head,
            left_out=tuple(module for module in left_out if module != head),
        )

    def _is_ignored(self, module: str) -> bool:
        return any(_matches(pattern, module) for pattern in self.ignore)


def _is_matrix(kind: str) -> bool:
    return kind in ("linear", "output")


def _matches(pattern: str, module: str) -> bool:
    """Return whether a pattern of `ignore` is a module's name.

    It has the names of transformers, where `gate_proj` is our `w1`.
    """
    if not pattern.startswith("re:"):
        return canonical_name(f"{pattern}.weight") == f"{module}.weight"
    return any(re.match(pattern.removeprefix("re:"), name) for name in _foreign_names(module))


def _foreign_names(module: str) -> list[str]:
    for ours, theirs in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        module = module.replace(f"mlp.{ours}", f"mlp.{theirs}")
    return [module, f"model.{module}"]
