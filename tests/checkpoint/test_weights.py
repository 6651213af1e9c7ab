"""Load halves, and refuse every kind of broken checkpoint."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chassis.errors import DataLoss, FailedPrecondition, TandemError
from checkpoint import weights
from checkpoint.config import read_config
from checkpoint.families import HALVES, HEAD, Half, layout
from checkpoint.manifest import read_manifest, write_manifest
from checkpoint.weights import LoadedHalf, load_half

Copy = Callable[..., Path]

SOME = "language_model.layers.1.mlp.w2.weight"


def load(folder: Path, half: Half) -> LoadedHalf:
    return load_half(folder, half, dtype=torch.float32, device="cpu")


def rejected(folder: Path, half: Half, reason: str) -> str:
    """Return the error message of a failed load.

    The reason must be `reason`, and the message must not hold a path.
    """
    with pytest.raises(TandemError) as caught:
        load(folder, half)
    assert caught.value.reason == reason, caught.value.message
    assert isinstance(caught.value, DataLoss if reason == "DIGEST_MISMATCH" else FailedPrecondition)
    assert str(folder.parent) not in caught.value.message
    return caught.value.message


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a single-file checkpoint in place."""
    path = folder / f"{folder.name}.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("half", HALVES)
def test_a_half_is_the_same_however_it_is_stored(pristine: Path, half: Half) -> None:
    # Otherwise a repacked model would fill a cache twice.
    tag = next((pristine / "single").iterdir()).name
    one, *others = [load(pristine / stored / tag, half) for stored in ("single", "shards", "bin")]
    for other in others:
        assert other.digest == one.digest
        assert other.tensors.keys() == one.tensors.keys()
        assert all(torch.equal(other.tensors[name], one.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("half", HALVES)
def test_a_half_holds_exactly_its_own_tensors(checkpoint: Copy, half: Half) -> None:
    folder = checkpoint()
    loaded = load(folder, half)
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.tensors.items()}
    assert shapes == {spec.name: spec.shape for spec in layout(loaded.config) if spec.half == half}
    assert loaded.digest == read_manifest(folder).half_digest(half)


def test_tensors_have_the_requested_type(checkpoint: Copy) -> None:
    folder = checkpoint()
    as_stored = load_half(folder, "language", dtype=torch.bfloat16, device="cpu")
    widened = load(folder, "language")
    assert {tensor.dtype for tensor in widened.tensors.values()} == {torch.float32}
    assert as_stored.digest == widened.digest
    assert all(torch.equal(as_stored.tensors[name].float(), widened.tensors[name]) for name in widened.tensors)


def test_loaded_tensors_do_not_change_with_the_file(checkpoint: Copy) -> None:
    folder = checkpoint()
    tensors = load_half(folder, "language", dtype=torch.bfloat16, device="cpu").tensors
    before = tensors[SOME].clone()
    path = folder / f"{folder.name}.safetensors"
    with path.open("r+b") as file:
        file.seek(-200_000, os.SEEK_END)
        file.write(bytes(200_000))
    assert torch.equal(tensors[SOME], before)


@pytest.mark.parametrize("stored", ["shards", "bin"])
def test_the_other_halfs_files_are_not_needed(checkpoint: Copy, stored: str) -> None:
    folder = checkpoint(stored)
    index = json.loads(next(folder.glob("*.index.json")).read_text())["weight_map"]
    needed = {file for name, file in index.items() if not name.startswith("language_model.")}
    for file in set(index.values()) - needed:
        (folder / file).unlink()
    load(folder, "vision")
    assert "missing" in rejected(folder, "language", "BAD_CHECKPOINT")


def test_the_other_halfs_elements_are_not_read(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors[SOME].zero_())
    load(folder, "vision")
    rejected(folder, "language", "DIGEST_MISMATCH")


@pytest.mark.parametrize(("half", "other"), [("vision", "language"), ("language", "vision")])
def test_a_checkpoint_of_the_wrong_half_is_refused(checkpoint: Copy, half: Half, other: Half) -> None:
    folder = checkpoint()
    names = {spec.name for spec in layout(read_config(folder)) if spec.half == other}
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name not in names])
    load(folder, other)
    assert f"no tensor of the {half} half" in rejected(folder, half, "WRONG_HALF")


def test_a_missing_tensor_is_named(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors.pop(SOME))
    assert rejected(folder, "language", "MISSING_TENSORS").endswith(f"lacks {SOME}.")


def test_many_missing_tensors_are_counted(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])
    assert rejected(folder, "language", "MISSING_TENSORS").endswith("and 6 more.")


@pytest.mark.parametrize("half", HALVES)
def test_an_unexpected_tensor_is_named(checkpoint: Copy, half: Half) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors.update({"language_model.layers.2.norm.weight": torch.ones(3)}))
    assert "language_model.layers.2.norm.weight" in rejected(folder, half, "UNEXPECTED_TENSORS")


def test_a_wrong_shape_is_named_with_both_shapes(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors.update({SOME: tensors[SOME].T.contiguous()}))
    assert f"{SOME} is [128, 64], not [64, 128]" in rejected(folder, "language", "WRONG_SHAPE")


def test_a_tensor_of_integers_is_refused(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors.update({SOME: tensors[SOME].int()}))
    assert "int32" in rejected(folder, "language", "BAD_CHECKPOINT")


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
@pytest.mark.parametrize("stored", ["single", "shards", "bin"])
def test_a_truncated_file_is_named(checkpoint: Copy, stored: str, length: int) -> None:
    folder = checkpoint(stored)
    path = max(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    with path.open("r+b") as file:
        file.truncate(length if length >= 0 else path.stat().st_size + length)
    assert path.name in rejected(folder, "language", "BAD_CHECKPOINT")


@pytest.mark.parametrize(("half", "name"), [("language", SOME), ("vision", "perceiver_resampler.query")])
@pytest.mark.parametrize("stored", ["single", "shards"])
def test_one_changed_bit_is_detected(checkpoint: Copy, stored: str, half: Half, name: str) -> None:
    folder = checkpoint(stored)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name].view(torch.int16).view(-1)[-1] ^= 1
            save_file(tensors, path)
    rejected(folder, half, "DIGEST_MISMATCH")


def test_a_changed_type_is_detected(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors.update({SOME: tensors[SOME].float()}))
    rejected(folder, "language", "DIGEST_MISMATCH")


@pytest.mark.parametrize("half", HALVES)
def test_an_edited_manifest_is_detected(checkpoint: Copy, half: Half) -> None:
    folder = checkpoint()
    manifest = read_manifest(folder)
    entry = manifest.vision if half == "vision" else manifest.language
    forged = manifest.model_copy(update={half: entry.model_copy(update={"digest": bytes(32)})})
    write_manifest(forged, folder)
    rejected(folder, half, "DIGEST_MISMATCH")


def test_a_changed_configuration_is_detected(checkpoint: Copy) -> None:
    # Only the digest changes: all shapes stay the same.
    folder = checkpoint()
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"rope_theta": 1000000.0', '"rope_theta": 10000.0'))
    assert "config.json" in rejected(folder, "language", "DIGEST_MISMATCH")


def test_the_language_half_detects_a_changed_tokenizer(checkpoint: Copy) -> None:
    folder = checkpoint()
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    load(folder, "vision")
    assert "tokenizer.json" in rejected(folder, "language", "DIGEST_MISMATCH")


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Copy, name: str) -> None:
    folder = checkpoint()
    (folder / name).unlink()
    assert name in rejected(folder, "language", "BAD_CHECKPOINT")


def test_a_checkpoint_without_weights_is_refused(checkpoint: Copy) -> None:
    folder = checkpoint()
    (folder / f"{folder.name}.safetensors").unlink()
    assert "no weights" in rejected(folder, "vision", "BAD_CHECKPOINT")


def test_a_good_checkpoint_loads_after_a_bad_one(checkpoint: Copy) -> None:
    bad, good = checkpoint("single"), checkpoint("shards")
    edit(bad, lambda tensors: tensors.pop(SOME))
    rejected(bad, "language", "MISSING_TENSORS")
    load(good, "language")


def test_a_separate_head_equal_to_the_embedding_is_accepted(checkpoint: Copy) -> None:
    folder = checkpoint()
    edit(folder, lambda tensors: tensors.update({HEAD: tensors["language_model.embed_tokens.weight"].clone()}))
    for half in HALVES:
        assert HEAD not in load(folder, half).tensors


@pytest.mark.parametrize("change", [torch.neg, torch.Tensor.float, lambda head: head[:-1]])
def test_a_separate_head_that_differs_is_refused(
    checkpoint: Copy, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    folder = checkpoint()
    edit(
        folder,
        lambda tensors: tensors.update({HEAD: change(tensors["language_model.embed_tokens.weight"]).clone()}),
    )
    assert "ties them" in rejected(folder, "language", "UNEXPECTED_TENSORS")


@pytest.mark.parametrize("half", HALVES)
def test_a_half_larger_than_the_available_memory_is_rejected(
    checkpoint: Copy, half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "available_bytes", lambda _device: 1000)
    message = rejected(checkpoint(), half, "NO_MEMORY")
    assert "raise the memory limit" in message
