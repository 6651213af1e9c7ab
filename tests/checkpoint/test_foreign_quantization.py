"""Convert AWQ and GPTQ files, packed here by their definition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.compressed_tensors import take_weight
from checkpoint.config import read_config, write_config
from checkpoint.families import without_quantization
from checkpoint.importing import Imported, import_folder
from checkpoint.lowbit import LowBitWeight
from checkpoint.packing import pack
from checkpoint.verification import raise_for_problems, verify
from checkpoint.weights import load_half
from tests.hub_folder import edit_json, write_hub_folder

TAG = "qwen3-vl-tiny-v1.0.0"
GROUP = 32
LAYERS = "model.language_model.layers."
DOWN, OURS = f"{LAYERS}2.mlp.down_proj", "language_model.layers.2.mlp.w2"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Tensors = dict[str, Tensor]


def words(values_RC: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return values 0..15 as int32 [R, C/8], one by one."""
    rows = []
    for row in values_RC.tolist():
        found = []
        for start in range(0, len(row), 8):
            word = sum(row[start + order[place]] << (4 * place) for place in range(8))
            found.append(word - 2**32 if word >= 2**31 else word)
        rows.append(found)
    return torch.tensor(rows, dtype=torch.int32)


def quantized(outputs: int, inputs: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return values [N, K] and zeros [N, G] of 0..15, and scales [N, G]."""
    groups = inputs // GROUP
    values_NK = torch.randint(0, 16, (outputs, inputs))
    zeros_NG = torch.full((outputs, groups), 8) if symmetric else torch.randint(1, 16, (outputs, groups))
    return values_NK, zeros_NG, (0.01 + torch.rand(outputs, groups)).half()


def as_awq(module: str, values_NK: Tensor, zeros_NG: Tensor, scales_NG: Tensor) -> Tensors:
    return {
        f"{module}.qweight": words(values_NK.T, AWQ_ORDER),
        f"{module}.qzeros": words(zeros_NG.T, AWQ_ORDER),
        f"{module}.scales": scales_NG.T.contiguous(),
    }


def as_gptq(module: str, values_NK: Tensor, zeros_NG: Tensor, scales_NG: Tensor) -> Tensors:
    in_order = tuple(range(8))
    return {
        f"{module}.qweight": words(values_NK, in_order).T.contiguous(),
        f"{module}.qzeros": words(zeros_NG.T - 1, in_order),  # version 1
        f"{module}.scales": scales_NG.T.contiguous(),
        f"{module}.g_idx": (torch.arange(values_NK.shape[1]) // GROUP).int(),
    }


FORMATS: dict[str, Callable[[str, Tensor, Tensor, Tensor], Tensors]] = {"awq": as_awq, "gptq": as_gptq}
formats = pytest.mark.parametrize("method", FORMATS)


def release(folder: Path, method: str, *, symmetric: bool = False) -> Tensors:
    """Write a release, and return its matrices in float32."""
    torch.manual_seed(0)
    write_hub_folder(folder, max_shard_size="1GB")
    (path,) = folder.glob("*.safetensors")
    stored: Tensors = {}
    exact: Tensors = {}
    for name, tensor in load_file(path).items():
        if name.startswith(LAYERS) and tensor.dim() == 2:
            values, zeros, scales = quantized(*tensor.shape, symmetric=symmetric)
            stored |= FORMATS[method](name.removesuffix(".weight"), values, zeros, scales)
            spread = [one.float().repeat_interleave(GROUP, dim=1) for one in (zeros, scales)]
            exact[name] = (values - spread[0]) * spread[1]
        else:
            stored[name] = tensor
    save_file(stored, path)
    fields = {"quant_method": method, "bits": 4, "group_size": GROUP}
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=fields))
    return exact


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def imported(folder: Path) -> Imported:
    result = import_folder(folder, folder.parent / "models", TAG)
    raise_for_problems(TAG, verify(result.folder))
    return result


def matrix(folder: Path) -> LowBitWeight:
    weight = take_weight(load_half(folder, "language", dtype=torch.bfloat16).tensors, OURS, "w4a16")
    assert isinstance(weight, LowBitWeight)
    return weight


@formats
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_converted_without_rounding(tmp_path: Path, method: str, symmetric: bool) -> None:
    exact = release(tmp_path / "hub", method, symmetric=symmetric)
    result = imported(tmp_path / "hub")
    assert str(result.config.language.quantization) == f"w4a16 g{GROUP}{'' if symmetric else ' with zeros'}"
    assert torch.equal(matrix(result.folder).dequantize(), exact[f"{DOWN}.weight"])


def test_gptq_of_the_second_version_has_whole_zero_points(tmp_path: Path) -> None:
    exact = release(tmp_path / "hub", "gptq")
    zeros = load_file(next((tmp_path / "hub").glob("*.safetensors")))[f"{DOWN}.qzeros"]
    # Adding 1 to each of the 4-bit zero points, which are below 15, carries nothing.
    change(tmp_path / "hub", lambda tensors: tensors.update(_plus_one(tensors)))
    edit_json(tmp_path / "hub" / "config.json", lambda config: _second(config))
    assert torch.equal(matrix(imported(tmp_path / "hub").folder).dequantize(), exact[f"{DOWN}.weight"])
    changed = load_file(next((tmp_path / "hub").glob("*.safetensors")))[f"{DOWN}.qzeros"]
    assert not torch.equal(changed, zeros)


def _plus_one(tensors: Tensors) -> Tensors:
    return {name: (tensor.long() + 0x11111111).to(torch.int32) for name, tensor in tensors.items() if "qzeros" in name}


def _second(config: dict[str, Any]) -> None:
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"


@formats
def test_weights_are_packed_without_the_hub(tmp_path: Path, method: str) -> None:
    exact = release(tmp_path / "hub", method)
    result = imported(tmp_path / "hub")
    write_config(without_quantization(read_config(result.folder)), tmp_path)
    pack([tmp_path / "hub"], tmp_path / "packed", TAG, config=tmp_path / "config.json")
    assert torch.equal(matrix(tmp_path / "packed" / TAG).dequantize(), exact[f"{DOWN}.weight"])


BAD: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "inputs out of order": ("gptq", lambda tensors: tensors[f"{DOWN}.g_idx"].sub_(3).neg_(), "g_idx"),
    "zero scale": ("awq", lambda tensors: tensors[f"{DOWN}.scales"][1].zero_(), "scales has a scale"),
    "NaN scale": ("gptq", lambda tensors: tensors[f"{DOWN}.scales"][1].fill_(torch.nan), "scales has a scale"),
    "zero point of 16": ("gptq", lambda tensors: tensors[f"{DOWN}.qzeros"].fill_(-1), "qzeros has a zero point"),
    "no scales": ("awq", lambda tensors: tensors.pop(f"{DOWN}.scales"), "lacks scales"),
    "packed along the other side": (
        "awq",
        lambda tensors: tensors.update({f"{DOWN}.qweight": tensors[f"{DOWN}.qweight"].T.contiguous()}),
        "qweight is ",
    ),
    "groups that do not divide": (
        "awq",
        lambda tensors: tensors.update({f"{DOWN}.scales": tensors[f"{DOWN}.scales"][:3].contiguous()}),
        "which does not fit",
    ),
    "bytes": (
        "awq",
        lambda tensors: tensors.update({f"{DOWN}.qweight": tensors[f"{DOWN}.qweight"].to(torch.int8)}),
        "qweight is int8, not int32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_converted_is_refused_by_name(tmp_path: Path, name: str) -> None:
    method, edit, message = BAD[name]
    release(tmp_path / "hub", method)
    change(tmp_path / "hub", edit)
    with pytest.raises(FailedPrecondition, match=message) as caught:
        imported(tmp_path / "hub")
    assert caught.value.reason == "BAD_LOW_BIT"
    assert OURS in caught.value.message
    assert not (tmp_path / "models" / TAG).exists()


def test_other_numbers_of_bits_are_refused(tmp_path: Path) -> None:
    release(tmp_path / "hub", "gptq")
    edit_json(tmp_path / "hub" / "config.json", lambda config: config["quantization_config"].update(bits=3))
    with pytest.raises(FailedPrecondition, match="AWQ or GPTQ with 4 bits"):
        imported(tmp_path / "hub")
