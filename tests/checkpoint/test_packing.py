"""Foreign weights become a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.manifest import read_manifest
from checkpoint.packing import pack
from checkpoint.store import ModelStore
from checkpoint.verification import verify
from checkpoint.weights import load_half

FOREIGN = {
    ".self_attn.": ".attn.",
    ".mlp.w1.": ".mlp.gate_proj.",
    ".mlp.w3.": ".mlp.up_proj.",
    ".mlp.w2.": ".mlp.down_proj.",
}


def foreign_name(name: str) -> str:
    if name.startswith("language_model."):
        for ours, theirs in FOREIGN.items():
            name = name.replace(ours, theirs)
    return name


@pytest.fixture
def original(pristine: Path) -> Path:
    return next((pristine / "single").iterdir())


@pytest.fixture
def foreign(original: Path, tmp_path: Path) -> Path:
    """Return the tiny model in a foreign form.

    It has two `.bin` shards, other names, a separate head and a static position table.
    """
    folder = tmp_path / "foreign"
    folder.mkdir()
    tensors = {
        foreign_name(name): tensor for name, tensor in load_file(original / f"{original.name}.safetensors").items()
    }
    tensors["lm_head.weight"] = tensors["language_model.embed_tokens.weight"].clone()
    tensors["language_model.embed_positions.weight"] = torch.zeros(1024, 64)
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    shutil.copy(original / "tokenizer.json", folder)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_foreign_folder_becomes_the_same_model(foreign: Path, original: Path, tmp_path: Path, shards: int) -> None:
    manifest = pack([foreign], tmp_path / "models", "packed-v1.0.0", config=original / "config.json", shards=shards)
    packed = ModelStore(tmp_path / "models").folder("packed-v1.0.0")
    assert manifest.vision == read_manifest(original).vision
    assert manifest.language == read_manifest(original).language
    assert all(check.problem is None for check in verify(packed))
    assert (packed / "chat_template.jinja").read_text() == (original / "chat_template.jinja").read_text()
    load_half(packed, "language", dtype=torch.float32)


def test_single_files_can_be_packed(original: Path, tmp_path: Path) -> None:
    tensors = load_file(original / f"{original.name}.safetensors")
    parts = {"vision.safetensors": "vision", "rest.safetensors": "language"}
    for file, half in parts.items():
        save_file(
            {name: t for name, t in tensors.items() if name.startswith("language") == (half == "language")},
            tmp_path / file,
        )
    manifest = pack(
        [tmp_path / file for file in parts],
        tmp_path / "models",
        "packed-v1.0.0",
        config=original / "config.json",
        tokenizer=original / "tokenizer.json",
    )
    assert manifest.vision == read_manifest(original).vision


def test_packing_can_change_the_element_type(foreign: Path, original: Path, tmp_path: Path) -> None:
    pack([foreign], tmp_path, "packed-v1.0.0", config=original / "config.json", dtype=torch.float32)
    tensors = load_file(tmp_path / "packed-v1.0.0" / "packed-v1.0.0.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("missing", ["tokenizer.json", "pytorch_model-00002-of-00002.bin"])
def test_a_missing_file_is_named(foreign: Path, original: Path, tmp_path: Path, missing: str) -> None:
    (foreign / missing).unlink()
    with pytest.raises(FailedPrecondition, match=missing):
        pack([foreign], tmp_path / "models", "packed-v1.0.0", config=original / "config.json")
    assert ModelStore(tmp_path / "models").tags() == []


def test_a_tokenizer_without_the_image_token_is_refused(foreign: Path, original: Path, tmp_path: Path) -> None:
    config = json.loads((original / "config.json").read_text())
    config["image_token"] = "<|image|>"
    (tmp_path / "other.json").write_text(json.dumps(config))
    with pytest.raises(FailedPrecondition, match=r"<\|image\|>"):
        pack([foreign], tmp_path / "models", "packed-v1.0.0", config=tmp_path / "other.json")


def test_an_invalid_configuration_is_refused(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"vision": {"patch_size": 15}}')
    with pytest.raises(FailedPrecondition, match=r"bad\.json is not valid: .*patch_size"):
        pack([foreign], tmp_path / "models", "packed-v1.0.0", config=tmp_path / "bad.json")


@pytest.mark.parametrize("names", [["nothing.safetensors"], ["notes.txt"], []])
def test_a_source_that_is_not_a_weight_file_is_refused(tmp_path: Path, original: Path, names: list[str]) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InvalidArgument) as caught:
        pack([tmp_path / name for name in names], tmp_path, "packed-v1.0.0", config=original / "config.json")
    assert caught.value.reason == "BAD_SOURCE"
