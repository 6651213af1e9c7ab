"""Make checkpoints with few bits a weight, and refuse broken ones."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chassis.errors import FailedPrecondition, TandemError
from checkpoint.compressed_tensors import take_weight
from checkpoint.config import read_config, write_config
from checkpoint.families import HALVES, ModelConfig, Scheme, layout
from checkpoint.lowbit import LowBitWeight
from checkpoint.manifest import TOKENIZER_FILE, read_manifest
from checkpoint.quantizing import NearestRounder, plan, quantize
from checkpoint.release_probes import add_probes, read_release_probes
from checkpoint.rounding import Grid
from checkpoint.saving import save
from checkpoint.store import ModelStore
from checkpoint.verification import verify
from checkpoint.weights import load_half

Copy = Callable[..., Path]

TAG = "tiny-w4a16-v1.0.0"
MODULE = "language_model.layers.1.mlp.w2"
PROBE = {"id": "1", "judge": {"exact": "a"}, "messages": [{"role": "user", "content": "Which letter?"}]}


def make(source: Path, root: Path, scheme: Scheme = "w4a16", *, tag: str = TAG) -> Path:
    """Quantize a checkpoint in groups of 32."""
    config = plan(read_config(source), scheme, 32)
    quantize(source, root, tag, config, NearestRounder(Grid(scheme, 0 if scheme == "w8a8" else 32)))
    return root / tag


@pytest.fixture(scope="module")
def quantized(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an unmodified checkpoint in w4a16."""
    return make(pristine / "shards" / "tiny-v1.0.0", tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w4a8"])
def test_a_new_checkpoint_is_whole(pristine: Path, tmp_path: Path, scheme: Scheme) -> None:
    source = pristine / "single" / "tiny-v1.0.0"
    folder = make(source, tmp_path, scheme)
    assert [check.problem for check in verify(folder) if check.problem] == []
    before, after = read_manifest(source), read_manifest(folder)
    assert after.vision.digest == before.vision.digest
    assert after.language.vision_digest == before.language.vision_digest
    assert after.language.digest != before.language.digest
    half = load_half(folder, "language", dtype=torch.bfloat16)
    original = load_half(source, "language", dtype=torch.bfloat16)
    weight = take_weight(dict(half.tensors), MODULE, scheme)
    assert isinstance(weight, LowBitWeight)
    assert weight.scheme == scheme
    exact = original.tensors[f"{MODULE}.weight"].float()
    assert (weight.dequantize() - exact).norm() < (0.02 if scheme == "w8a8" else 0.15) * exact.norm()
    for name in ("language_model.embed_tokens.weight", "language_model.norm.weight"):
        assert torch.equal(half.tensors[name], original.tensors[name])


def test_each_layer_is_reported_with_its_errors(pristine: Path, tmp_path: Path) -> None:
    source = pristine / "single" / "tiny-v1.0.0"
    seen: dict[int, Mapping[str, float]] = {}
    config = plan(read_config(source), "w4a16", 32)
    quantize(source, tmp_path, TAG, config, NearestRounder(Grid("w4a16", 32)), on_layer=seen.__setitem__)
    num_layers = config.language.num_layers
    assert list(seen) == list(range(num_layers + 1))
    assert seen[0].keys() >= {"self_attn.q_proj", "self_attn.o_proj", "mlp.w1", "mlp.w2", "mlp.w3"}
    assert all(0.02 < error < 0.2 for errors in list(seen.values())[:-1] for error in errors.values())
    assert 0 < seen[num_layers]["lm_head"] < 0.02


def test_probes_go_with_the_release(checkpoint: Copy, tmp_path: Path) -> None:
    source, file = checkpoint(), tmp_path / "probes.jsonl"
    file.write_text(json.dumps(PROBE))
    add_probes(source, file)
    folder = make(source, tmp_path)
    assert [probe.id for probe in read_release_probes(folder).probes] == ["1"]
    assert not [check for check in verify(folder) if check.problem]


def test_weights_take_the_memory_of_their_bits(quantized: Path) -> None:
    half = load_half(quantized, "language", dtype=torch.float32)
    stored = load_file(quantized / f"{TAG}.safetensors")
    packed = [name for name in half.tensors if name.endswith((".weight_packed", "lm_head.weight"))]
    assert len(packed) == 7 * half.config.language.num_layers + 1
    assert all(half.tensors[name].nbytes == stored[name].nbytes for name in packed)


def test_a_quantized_checkpoint_is_not_quantized_again(quantized: Path) -> None:
    with pytest.raises(FailedPrecondition, match="w4a16 g32 already") as caught:
        plan(read_config(quantized), "w8a8", 128)
    assert caught.value.reason == "ALREADY_QUANTIZED"


def test_a_group_that_does_not_divide_is_refused_with_one_that_does(pristine: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"Groups of 128 .* choose 32") as caught:
        plan(read_config(pristine / "single" / "tiny-v1.0.0"), "w4a16", 128)
    assert caught.value.reason == "BAD_GROUP"


def test_a_damaged_source_is_refused(checkpoint: Copy, tmp_path: Path) -> None:
    source = checkpoint()
    path = source / "tiny-v1.0.0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TandemError) as caught:
        make(source, tmp_path)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert not (tmp_path / TAG).exists()


SCALES, PACKED, SHAPE = (f"{MODULE}.weight_{name}" for name in ("scale", "packed", "shape"))


def _scale(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[SCALES][3, 1] = value

    return change


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str, str]] = {
    "zero scale": (_scale(0.0), "BAD_LOW_BIT", f"{SCALES} has a scale that is not above 0"),
    "negative scale": (_scale(-1.0), "BAD_LOW_BIT", f"{SCALES} has a scale that is not above 0"),
    "NaN scale": (_scale(float("nan")), "BAD_LOW_BIT", f"{SCALES} has a scale that is not a finite number"),
    "infinite scale": (_scale(float("inf")), "BAD_LOW_BIT", f"{SCALES} has a scale that is not a finite number"),
    "another shape inside": (
        lambda tensors: tensors.update({SHAPE: tensors[SHAPE].flip(0)}),
        "BAD_LOW_BIT",
        f"{SHAPE} is ",
    ),
}


def resave(folder: Path, root: Path, config: ModelConfig, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Write a checkpoint of changed tensors, with its manifest."""
    tensors = load_file(folder / f"{TAG}.safetensors")
    change(tensors)
    with ModelStore(root).create(TAG) as new:
        save(new, config, tensors, TAG, tokenizer_json=(folder / TOKENIZER_FILE).read_text())
    return root / TAG


@pytest.mark.parametrize("name", BROKEN)
def test_bad_scales_and_shapes_are_refused_by_name(quantized: Path, tmp_path: Path, name: str) -> None:
    change, reason, message = BROKEN[name]
    folder = resave(quantized, tmp_path, read_config(quantized), change)
    with pytest.raises(TandemError) as caught:
        load_half(folder, "language", dtype=torch.bfloat16)
    assert caught.value.reason == reason
    assert message in caught.value.message


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], str, str]] = {
    "packed as bytes": (
        lambda tensors: tensors.update({PACKED: tensors[PACKED].view(torch.int8)}),
        "BAD_CHECKPOINT",
        f"{PACKED} is int8, not int32",
    ),
    "not packed": (
        lambda tensors: tensors.update({PACKED: torch.zeros(tensors[PACKED].shape)}),
        "BAD_CHECKPOINT",
        f"{PACKED} is float32, not int32",
    ),
    "packed along the rows": (
        lambda tensors: tensors.update({PACKED: tensors[PACKED].view(-1, 2 * tensors[PACKED].shape[1])}),
        "WRONG_SHAPE",
        PACKED,
    ),
    "scales of other groups": (
        lambda tensors: tensors.update({SCALES: tensors[SCALES][:, :1].contiguous()}),
        "WRONG_SHAPE",
        SCALES,
    ),
    "scales of integers": (
        lambda tensors: tensors.update({SCALES: tensors[SCALES].int()}),
        "BAD_CHECKPOINT",
        f"{SCALES} is int32, not bfloat16, float16 or float32",
    ),
    "no scales": (lambda tensors: tensors.pop(SCALES), "MISSING_TENSORS", SCALES),
    "zero points that nobody asked for": (
        lambda tensors: tensors.update({f"{MODULE}.weight_zero_point": torch.zeros(1, dtype=torch.int32)}),
        "UNEXPECTED_TENSORS",
        f"{MODULE}.weight_zero_point",
    ),
    "an order of the inputs": (
        lambda tensors: tensors.update({f"{MODULE}.weight_g_idx": torch.zeros(1, dtype=torch.int32)}),
        "UNEXPECTED_TENSORS",
        f"{MODULE}.weight_g_idx",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit_are_refused_by_name(quantized: Path, tmp_path: Path, name: str) -> None:
    change, reason, message = WRONG[name]
    with pytest.raises(TandemError) as caught:
        resave(quantized, tmp_path, read_config(quantized), change)
    assert caught.value.reason == reason
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "w2a16"}, "w8a8"),
        ({"group": 48}, "a group of 48 does not divide"),
        ({"scheme": "w8a8"}, "group must be null"),
        ({"left_out": ["language_model.norm"]}, "left_out names no matrix"),
        ({"left_out": ["language_model.layers.0.mlp.w1"]}, "but not all"),
        ({"bits": 4}, "bits"),
    ],
)
def test_unknown_schemes_are_refused(quantized: Path, tmp_path: Path, fields: dict[str, object], message: str) -> None:
    write_config(read_config(quantized), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["language"]["quantization"].update(fields)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FailedPrecondition, match=message) as caught:
        read_config(tmp_path)
    assert caught.value.reason == "BAD_CHECKPOINT"


def test_a_tied_head_cannot_have_few_bits(quantized: Path) -> None:
    config = read_config(quantized)
    with pytest.raises(ValueError, match="tied_embeddings must be false"):
        type(config.language).model_validate(config.language.model_dump() | {"tied_embeddings": True})


def test_matrices_that_are_left_out_keep_their_type(quantized: Path) -> None:
    config = read_config(quantized)
    assert config.language.quantization is not None
    some = config.language.quantization.model_copy(update={"left_out": (MODULE,), "head": False})
    language = config.language.model_copy(update={"quantization": some})
    names = {spec.name: spec.dtype for spec in layout(config.model_copy(update={"language": language}))}
    assert names[f"{MODULE}.weight"] is None
    assert names["lm_head.weight"] is None
    assert PACKED not in names
    assert names["language_model.layers.0.mlp.w2.weight_packed"] == "int32"


def test_only_the_language_half_changes(quantized: Path) -> None:
    config = read_config(quantized)
    assert "quantization" in config.half_fields("language")["language"]
    assert all(spec.dtype is None for spec in layout(config) if spec.half == HALVES[0])
