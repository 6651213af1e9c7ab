"""Checks before saving, and the digests in the manifest."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chassis.errors import FailedPrecondition
from checkpoint.config import read_config
from checkpoint.manifest import Manifest, read_manifest
from checkpoint.saving import save

SOME = "language_model.layers.1.mlp.w2.weight"


def test_saving_refuses_tensors_that_do_not_fit_the_model(pristine: Path, tmp_path: Path) -> None:
    folder = next((pristine / "single").iterdir())
    config, tokenizer = read_config(folder), (folder / "tokenizer.json").read_text()
    tensors = load_file(folder / f"{folder.name}.safetensors")
    for changed, reason in (
        ({name: tensor for name, tensor in tensors.items() if name != SOME}, "MISSING_TENSORS"),
        (tensors | {"vision_tower.extra": torch.ones(1)}, "UNEXPECTED_TENSORS"),
        (tensors | {SOME: tensors[SOME].T}, "WRONG_SHAPE"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            save(tmp_path, config, changed, "tiny-v1.0.0", tokenizer_json=tokenizer)
        assert caught.value.reason == reason
    assert not (tmp_path / "manifest.json").exists()


def test_the_manifest_names_the_vision_half_of_training(pristine: Path, tmp_path: Path) -> None:
    folder = next((pristine / "single").iterdir())
    tensors = load_file(folder / f"{folder.name}.safetensors")
    manifest: Manifest = save(
        tmp_path,
        read_config(folder),
        tensors,
        folder.name,
        tokenizer_json=(folder / "tokenizer.json").read_text(),
        vision_digest=bytes(range(32)),
    )
    assert manifest.language.vision_digest == bytes(range(32))
    assert manifest.vision == read_manifest(folder).vision
