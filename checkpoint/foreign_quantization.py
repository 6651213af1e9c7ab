"""Convert weights of AWQ and GPTQ files.

Both have 4 bits a weight, and a scale and a zero point for each group. AWQ (GEMM) has `qweight` int32 [K, N/8], with
the outputs of a word in the order 0, 2, 4, 6, 1, 3, 5, 7. GPTQ has `qweight` int32 [K/8, N], and `g_idx` [K], the group
of each input. In both, `scales` are [G, N] and `qzeros` [G, N/8]. GPTQ's have the outputs of a word in order, and
version 1 stores each zero point minus 1. Nothing is rounded again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.compressed_tensors import stored_tensors
from checkpoint.families import LanguageConfig, ModelConfig, Quantization, decoder_layout, layout
from checkpoint.lowbit import NIBBLE_ZERO, LowBitWeight, pack_nibbles
from checkpoint.stored_tensor import StoredTensor
from checkpoint.torch_tensors import as_torch

# N outputs, K inputs, G groups

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_IN_ORDER = tuple(range(8))  # weights in an int32
_WEIGHT = ".weight"


def zeros_minus_one(folder: Path) -> bool:
    """Return whether a folder's GPTQ files are of version 1."""
    for name in ("quantize_config.json", "config.json"):
        try:
            fields = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        fields = fields.get("quantization_config", fields) if isinstance(fields, dict) else {}
        if isinstance(fields, dict) and fields.get("checkpoint_format") == "gptq_v2":
            return False
    return True


def is_foreign(names: Mapping[str, object]) -> bool:
    """Return whether these are tensors of AWQ or GPTQ."""
    return any(name.endswith(".qweight") for name in names)


class ConvertedTensors(Mapping[str, Tensor]):
    """AWQ or GPTQ tensors in our form, made on demand.

    One matrix is in memory at a time.
    """

    def __init__(
        self, files: Mapping[str, StoredTensor], config: ModelConfig, source: str, *, zeros_minus_one: bool
    ) -> None:
        """Read which matrices have few bits.

        Args:
            files: by canonical name.
            config: of the model, without quantization.
            source: the files' name for messages.
            zeros_minus_one: GPTQ files are of version 1.

        Raises:
            FailedPrecondition: BAD_LOW_BIT, shapes, scales, zero points or the order of inputs cannot be used.
        """
        self._files, self._source, self._zeros_minus_one = files, source, zeros_minus_one
        self._ready: dict[str, Tensor] = {}
        matrices = _matrices(config.language)
        self._shapes = {name: shape for name, shape in matrices.items() if f"{name}.qweight" in files}
        found = {name: self._scales_and_zeros(name) for name in self._shapes}
        groups = {self._shapes[name][1] // scales.shape[1] for name, (scales, _) in found.items()}
        if len(groups) != 1:
            raise self._bad(f"its matrices have groups of several sizes, {sorted(groups)}")
        self._symmetric = not any(bool(zeros.any()) for _, zeros in found.values())
        self.config = self._quantized(config, groups.pop(), tuple(name for name in matrices if name not in found))
        self._specs = {spec.name: spec for spec in layout(self.config)}

    def __getitem__(self, name: str) -> Tensor:
        module = name.rpartition(".")[0]
        if module not in self._shapes:
            return as_torch(self._files[name])
        if name.endswith(".weight_scale"):
            return self._scales_and_zeros(module)[0]
        if name not in self._ready:
            self._ready = stored_tensors(module, self._matrix(module))
        return self._ready[name]

    def __contains__(self, name: object) -> bool:
        return name in self._specs or name in self._files

    def __iter__(self) -> Iterator[str]:
        known = {f"{module}.{part}" for module in self._shapes for part in ("qweight", "qzeros", "scales", "g_idx")}
        yield from (name for name in self._files if name not in known)
        yield from (name for name in self._specs if name not in self._files)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _quantized(self, config: ModelConfig, group: int, left_out: tuple[str, ...]) -> ModelConfig:
        try:
            quantization = Quantization(scheme="w4a16", group=group, symmetric=self._symmetric, left_out=left_out)
            language = LanguageConfig.model_validate(config.language.model_dump() | {"quantization": quantization})
        except ValueError as error:
            raise self._bad(f"its matrices do not fit together: {error}") from error
        return config.model_copy(update={"language": language})

    def _matrix(self, module: str) -> LowBitWeight:
        scales_NG, zeros_NG = self._scales_and_zeros(module)
        words = as_torch(self._files[f"{module}.qweight"])
        values_NK = _by_column(words, _AWQ_ORDER).T if self._is_awq(module) else _by_column(words.T, _IN_ORDER)
        packed = pack_nibbles(values_NK.contiguous() - NIBBLE_ZERO)
        group = self._shapes[module][1] // scales_NG.shape[1]
        return LowBitWeight("w4a16", packed, scales_NG, None if self._symmetric else zeros_NG, group)

    def _scales_and_zeros(self, module: str) -> tuple[Tensor, Tensor]:
        """Return scales and zero points of a matrix, both [N, G]."""
        self._check_shapes(module)
        num_inputs = self._shapes[module][1]
        scales_NG = as_torch(self._files[f"{module}.scales"]).T.contiguous()
        num_groups = scales_NG.shape[1]
        is_awq = self._is_awq(module)
        zeros_GN = _by_column(as_torch(self._files[f"{module}.qzeros"]), _AWQ_ORDER if is_awq else _IN_ORDER)
        if not is_awq:
            order = as_torch(self._files[f"{module}.g_idx"])
            if not torch.equal(order.long(), torch.arange(num_inputs) // (num_inputs // num_groups)):
                raise self._bad(f"{module}.g_idx has the inputs out of order, which cannot be used")
            if self._zeros_minus_one:
                zeros_GN = zeros_GN + 1
        if bool((zeros_GN > 15).any()):
            raise self._bad(f"{module}.qzeros has a zero point that is not a value of 4 bits")
        if not bool((scales_NG.isfinite() & (scales_NG > 0)).all()):
            raise self._bad(f"{module}.scales has a scale that is not a finite number above 0")
        return scales_NG, (zeros_GN.T - NIBBLE_ZERO).contiguous()

    def _check_shapes(self, module: str) -> None:
        outputs, inputs = self._shapes[module]
        missing = [part for part in ("qzeros", "scales") if f"{module}.{part}" not in self._files]
        if missing:
            raise self._bad(f"{module} lacks {' and '.join(missing)}")
        found = {part: self._files[f"{module}.{part}"].shape for part in ("qweight", "qzeros", "scales")}
        groups = found["scales"][0] if len(found["scales"]) == 2 else 0
        expected = {
            "qweight": (inputs, outputs // 8) if self._is_awq(module) else (inputs // 8, outputs),
            "qzeros": (groups, outputs // 8),
            "scales": (groups, outputs),
        }
        for part, shape in expected.items():
            if found[part] != shape or not groups or inputs % groups:
                raise self._bad(f"{module}.{part} is {list(found[part])}, which does not fit {outputs} x {inputs}")
        for part in ("qweight", "qzeros"):
            if self._files[f"{module}.{part}"].dtype != "int32":
                raise self._bad(f"{module}.{part} is {self._files[f'{module}.{part}'].dtype}, not int32")

    def _is_awq(self, module: str) -> bool:
        return f"{module}.g_idx" not in self._files

    def _bad(self, problem: str) -> FailedPrecondition:
        return FailedPrecondition(f"Checkpoint {self._source} cannot be converted: {problem}.", reason="BAD_LOW_BIT")


def _matrices(language: LanguageConfig) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of the layers' matrices, by module."""
    return {
        spec.name.removesuffix(_WEIGHT): (spec.shape[0], spec.shape[1])
        for spec in decoder_layout(language)
        if spec.kind in ("linear", "output") and spec.name.startswith("language_model.")
    }


def _by_column(words: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the values 0..15 of int32 [R, C/8] as int8 [R, C].

    The lowest 4 bits are of column `order[0]` of each word.
    """
    nibbles = torch.stack([(words >> (4 * place)) & 15 for place in _IN_ORDER], dim=-1).to(torch.int8)
    columns = torch.empty_like(nibbles)
    columns[..., list(order)] = nibbles
    return columns.flatten(-2)
