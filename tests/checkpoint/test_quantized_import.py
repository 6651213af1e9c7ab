"""Import releases of compressed-tensors."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.compressed_tensors import take_weight
from checkpoint.importing import import_folder
from checkpoint.lowbit import LowBitWeight
from checkpoint.verification import raise_for_problems, verify
from checkpoint.weights import load_half
from tests.hub_folder import edit_json, write_hub_folder

TAG = "qwen3-vl-tiny-v1.0.0"
DOWN, OURS = "model.language_model.layers.2.mlp.down_proj", "language_model.layers.2.mlp.w2"
_MATRIX = re.compile(r"model\.language_model\.layers\.\d+\.(self_attn\.\w_proj|mlp\.\w+_proj)\.weight")
EIGHT = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}

Change = Callable[[dict[str, Any]], object]


def weights_of(bits: int, *, symmetric: bool = True) -> dict[str, Any]:
    """Return the arguments of weights, as the library writes them."""
    shape: dict[str, Any] = {"strategy": "channel"} if bits == 8 else {"strategy": "group", "group_size": 32}
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, "actorder": None, **shape}


def compress(weight_NK: Tensor, bits: int, *, symmetric: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return a matrix as it is stored and as read."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights_of(bits, symmetric=symmetric)))
    kind = IntQuantizationCompressor if bits == 8 else PackedQuantizationCompressor
    grouped = weight_NK.float().view(len(weight_NK), -1, weight_NK.shape[1] if bits == 8 else 32)
    tensors = {"weight": weight_NK, "weight_scale": (grouped.abs().amax(dim=-1) / (127 if bits == 8 else 7)).bfloat16()}
    if not symmetric:
        tensors["weight_zero_point"] = torch.randint(-3, 3, tensors["weight_scale"].shape, dtype=torch.int8)
    stored = kind.compress(tensors, scheme)
    return stored, kind.decompress(stored, scheme)["weight"]


def release(folder: Path, bits: int, activations: int, *, symmetric: bool = True) -> dict[str, Tensor]:
    """Write a release. Return its matrices as the library does."""
    torch.manual_seed(0)
    write_hub_folder(folder, tied=False, max_shard_size="1GB")
    (path,) = folder.glob("*.safetensors")
    tensors: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for name, tensor in load_file(path).items():
        if _MATRIX.fullmatch(name):
            stored, read[name] = compress(tensor, bits, symmetric=symmetric)
            tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in stored.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, path)
    group = {
        "targets": ["Linear"],
        "weights": weights_of(bits, symmetric=symmetric),
        "input_activations": EIGHT if activations == 8 else None,
        "output_activations": None,
    }
    written = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*visual.*"],
        "kv_cache_scheme": None,
    }
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=written))
    return read


@pytest.mark.parametrize(
    ("bits", "activations", "symmetric", "shown"),
    [
        (8, 8, True, "w8a8"),
        (4, 16, True, "w4a16 g32"),
        (4, 8, True, "w4a8 g32"),
        (4, 16, False, "w4a16 g32 with zeros"),
    ],
)
def test_a_release_is_imported_as_it_is(
    tmp_path: Path, bits: int, activations: int, symmetric: bool, shown: str
) -> None:
    expected = release(tmp_path / "hub", bits, activations, symmetric=symmetric)
    result = import_folder(tmp_path / "hub", tmp_path / "models", TAG)
    raise_for_problems(TAG, verify(result.folder))
    assert str(result.config.language.quantization) == shown
    half = load_half(result.folder, "language", dtype=torch.bfloat16)
    quantization = half.config.language.quantization
    assert quantization is not None
    weight = take_weight(half.tensors, OURS, quantization.scheme)
    assert isinstance(weight, LowBitWeight)
    torch.testing.assert_close(weight.dequantize(), expected[f"{DOWN}.weight"].float(), rtol=0.01, atol=1e-6)
    assert half.tensors["lm_head.weight"].dtype == torch.bfloat16


def group_of(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["quantization_config"]["config_groups"]["group_0"]
    return found


REFUSED: dict[str, tuple[Change, str]] = {
    "other method": (lambda config: config["quantization_config"].update(quant_method="fp8"), "fp8 cannot be imported"),
    "other format": (lambda config: config["quantization_config"].update(format="marlin-24"), "format"),
    "2 bits": (lambda config: group_of(config)["weights"].update(num_bits=2), "num_bits"),
    "groups out of order": (lambda config: group_of(config)["weights"].update(actorder="group"), "actorder"),
    "group that does not divide": (lambda config: group_of(config)["weights"].update(group_size=48), "group of 48"),
    "head with 4 bits": (lambda config: config["quantization_config"].update(ignore=[]), "head with 4 bits"),
    "a part of what is joined": (
        lambda config: config["quantization_config"]["ignore"].append("model.language_model.layers.1.mlp.up_proj"),
        "but not all",
    ),
    "fixed activations": (
        lambda config: group_of(config).update(input_activations=EIGHT | {"dynamic": False}),
        "dynamic",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_quantization_is_refused_by_name(tmp_path: Path, name: str) -> None:
    release(tmp_path / "hub", 4, 16)
    change, message = REFUSED[name]
    edit_json(tmp_path / "hub" / "config.json", change)
    with pytest.raises(FailedPrecondition, match=message) as caught:
        import_folder(tmp_path / "hub", tmp_path / "models", TAG)
    assert caught.value.reason == "BAD_CHECKPOINT"
    assert not (tmp_path / "models" / TAG).exists()


def test_a_scale_of_zero_is_refused_before_the_copy(tmp_path: Path) -> None:
    release(tmp_path / "hub", 4, 16)
    (path,) = (tmp_path / "hub").glob("*.safetensors")
    tensors = load_file(path)
    tensors[f"{DOWN}.weight_scale"][0, 0] = 0
    save_file(tensors, path)
    with pytest.raises(FailedPrecondition, match=f"{OURS}.weight_scale has a scale that is not above 0") as caught:
        import_folder(tmp_path / "hub", tmp_path / "models", TAG)
    assert caught.value.reason == "BAD_LOW_BIT"


def test_modules_that_a_release_leaves_out_keep_their_type(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    release(folder, 4, 16)
    (path,) = folder.glob("*.safetensors")
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(f"{DOWN}.")}
    tensors[f"{DOWN}.weight"] = torch.zeros(64, 128, dtype=torch.bfloat16)
    save_file(tensors, path)
    edit_json(folder / "config.json", lambda config: config["quantization_config"]["ignore"].append(DOWN))
    result = import_folder(folder, tmp_path / "models", TAG)
    assert result.config.language.quantization is not None
    assert result.config.language.quantization.left_out == (OURS,)
    assert load_half(result.folder, "language", dtype=torch.bfloat16).tensors[f"{OURS}.weight"].shape == (64, 128)
