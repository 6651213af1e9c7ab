"""A Hub folder becomes a checkpoint with the same tensors."""

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.config import read_config
from checkpoint.families import HALVES, SamplingDefaults
from checkpoint.importing import Imported, import_folder
from checkpoint.initial import create_checkpoint
from checkpoint.manifest import read_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from checkpoint.verification import raise_for_problems, verify
from checkpoint.weights import load_half
from tests.checkpoint.sentencepiece_models import KINDS, train
from tests.hub_folder import CHAT_TEMPLATE, TOKEN_IDS, edit_json, write_hub_folder, write_json

TAG = "qwen3-vl-tiny-v1.0.0"
RENAMED = {".w1.": ".gate_proj.", ".w3.": ".up_proj.", ".w2.": ".down_proj."}


def imported(source: Path, store: Path, *, copy: bool = False) -> Imported:
    """Import and verify a folder."""
    result = import_folder(source, store, TAG, copy=copy)
    raise_for_problems(TAG, verify(result.folder))
    return result


def loaded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Return both halves by the names of the Hub."""
    tensors: dict[str, Tensor] = {}
    for half in HALVES:
        tensors |= load_half(folder, half, dtype=dtype).tensors
    return {hub_name(name): tensor for name, tensor in tensors.items()}


def hub_name(name: str) -> str:
    """Return the Hub's name of a tensor of ours."""
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def source_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def as_bin(folder: Path) -> None:
    """Turn sharded safetensors into sharded torch files."""
    for path in sorted(folder.glob("*.safetensors")):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    [index] = folder.glob("*.index.json")
    content = json.loads(index.read_text())
    places = {name: f"pytorch_{Path(file).stem}.bin" for name, file in content["weight_map"].items()}
    write_json(folder / "pytorch_model.bin.index.json", {**content, "weight_map": places})
    index.unlink()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("max_shard_size", ["200KB", "1GB"])
def test_both_halves_equal_the_source(tmp_path: Path, tied: bool, dtype: torch.dtype, max_shard_size: str) -> None:
    source = write_hub_folder(tmp_path / "hub", tied=tied, dtype=dtype, max_shard_size=max_shard_size)
    made = imported(source, tmp_path / "models")
    assert_equal(loaded(made.folder, dtype), source_tensors(source))
    assert made.config.language.tied_embeddings == tied
    assert made.num_files == len(list(source.glob("*.safetensors")))


def test_digests_do_not_depend_on_how_the_weights_are_stored(released: Path, tmp_path: Path) -> None:
    stores = [tmp_path / str(number) for number in range(4)]
    one = write_hub_folder(tmp_path / "one file", max_shard_size="1GB")
    torch_files = Path(shutil.copytree(released, tmp_path / "bin"))
    as_bin(torch_files)
    manifests = [
        imported(released, stores[0]).manifest,
        imported(released, stores[1], copy=True).manifest,
        imported(one, stores[2]).manifest,
        imported(torch_files, stores[3]).manifest,
    ]
    assert len({(made.vision.digest, made.language.digest) for made in manifests}) == 1
    assert "pytorch_model.bin.index.json" in manifests[3].files
    assert_equal(loaded(stores[3] / TAG), source_tensors(released))


def test_the_configuration_says_what_the_folder_says(released: Path, tmp_path: Path) -> None:
    made = imported(released, tmp_path)
    config = read_config(made.folder)
    assert config == made.config
    assert (config.kind, config.image_token) == ("qwen3_vl", "<|image_pad|>")
    assert config.default_sampling == SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8)
    assert config.language.eos_token_ids == (TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"])
    assert config.visual_tokens_of(1, 1) == 16  # the lower limit of the image processor's budget
    assert (made.folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert (made.folder / "tokenizer.json").read_text() == (released / "tokenizer.json").read_text()


def test_weights_are_hard_links(released: Path, tmp_path: Path) -> None:
    made = imported(released, tmp_path)
    sources = sorted(released.glob("*.safetensors"))
    assert made.num_linked == made.num_files == len(sources) > 1
    for path in sources:
        assert (made.folder / path.name).stat().st_ino == path.stat().st_ino
    others = [path for path in made.folder.iterdir() if path.suffix != ".safetensors"]
    assert all(path.stat().st_nlink == 1 for path in others)


def test_copies_are_files_of_their_own(hub: Path, tmp_path: Path) -> None:
    made = imported(hub, tmp_path / "models", copy=True)
    expected = source_tensors(hub)
    assert made.num_linked == 0
    shutil.rmtree(hub)
    assert_equal(loaded(made.folder), expected)


def test_weights_of_another_file_system_are_copied(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), str(target))

    monkeypatch.setattr(os, "link", refuse)
    made = imported(released, tmp_path)
    assert made.num_linked == 0
    assert_equal(loaded(made.folder), source_tensors(released))


def test_too_little_space_for_copies_is_refused_with_both_figures(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1_000_000))
    with pytest.raises(FailedPrecondition, match=r"need 0\.00 GB, but .* has 0\.00 GB free") as caught:
        import_folder(released, tmp_path, TAG, copy=True)
    assert caught.value.reason == "NO_SPACE"
    imported(released, tmp_path)  # links need none


def test_links_of_the_hubs_cache_lead_to_its_files(hub: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(hub.iterdir()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, hub))
    made = imported(hub, tmp_path / "models")
    shutil.rmtree(hub)
    for path in made.folder.glob("*.safetensors"):
        assert not path.is_symlink()
        assert path.stat().st_ino == (blobs / made.manifest.files[path.name].hex()).stat().st_ino


def test_a_damaged_file_of_the_hubs_cache_is_named(hub: Path, tmp_path: Path) -> None:
    path = sorted(hub.glob("*.safetensors"))[3]
    blob = tmp_path / ("0" * 64)
    path.rename(blob)
    path.symlink_to(blob)
    with pytest.raises(DataLoss, match=f"{path.name} is damaged"):
        import_folder(hub, tmp_path / "models", TAG)
    assert ModelStore(tmp_path / "models").tags() == []


def test_code_in_the_folder_is_neither_run_nor_copied(hub: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in ("modeling_qwen3_vl.py", "configuration_qwen3_vl.py", "tokenization_qwen3_vl.py"):
        (hub / name).write_text(f"open({str(trace)!r}, 'w')\n")
    code = {"AutoModelForImageTextToText": "modeling_qwen3_vl.Qwen3VL", "AutoConfig": "configuration_qwen3_vl.Config"}
    edit_json(hub / "config.json", lambda config: config.update(auto_map=code))
    made = imported(hub, tmp_path / "models")
    assert not trace.exists()
    assert not list(made.folder.glob("*.py"))


def test_names_without_the_leading_model_are_read(hub: Path, tmp_path: Path) -> None:
    expected = source_tensors(hub)
    for path in hub.glob("*.safetensors"):
        save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    [index] = hub.glob("*.index.json")
    edit_json(index, lambda content: content.update(weight_map=without_model(content["weight_map"])))
    assert_equal(loaded(imported(hub, tmp_path / "models").folder), expected)


def without_model(weight_map: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix("model."): file for name, file in weight_map.items()}


def test_a_separate_head_equal_to_the_embedding_is_accepted(tmp_path: Path) -> None:
    source = write_hub_folder(tmp_path / "hub", max_shard_size="1GB")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    assert "lm_head.weight" not in loaded(imported(source, tmp_path / "models").folder)


@pytest.mark.parametrize("half", HALVES)
def test_a_half_needs_no_file_of_the_other_half(released: Path, tmp_path: Path, half: str) -> None:
    folder = imported(released, tmp_path).folder
    [index] = folder.glob("*.index.json")
    part = ".visual." if half == "vision" else ".language_model."
    places = json.loads(index.read_text())["weight_map"]
    needed = {file for name, file in places.items() if part in name}
    assert set(places.values()) - needed
    for file in set(places.values()) - needed:
        (folder / file).unlink()
    load_half(folder, half, dtype=torch.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.json", {"chat_template": CHAT_TEMPLATE}),
        ("tokenizer_config.json", {"chat_template": CHAT_TEMPLATE, "model_max_length": 1}),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": n, "template": t} for n, t in (("tool_use", "x"), ("default", CHAT_TEMPLATE))]},
        ),
    ],
)
def test_older_places_of_the_chat_template_are_read(hub: Path, tmp_path: Path, file: str, content: object) -> None:
    (hub / "chat_template.jinja").unlink()
    write_json(hub / file, content)
    assert (imported(hub, tmp_path / "models").folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_the_image_processors_newer_file_is_read(hub: Path, tmp_path: Path) -> None:
    content = json.loads((hub / "preprocessor_config.json").read_text())
    (hub / "preprocessor_config.json").unlink()
    write_json(hub / "processor_config.json", {"image_processor": content, "processor_class": "Qwen3VLProcessor"})
    assert imported(hub, tmp_path / "models").config.visual_tokens_of(1, 1) == 16


def test_an_older_release_with_torch_files_and_sentencepiece_is_imported(tmp_path: Path) -> None:
    """Its `config.json` has our own form already."""
    tiny = RESAMPLER_PRESETS["tiny"]
    config = tiny.model_copy(update={"language": tiny.language.model_copy(update={"vocab_size": 1024})})
    create_checkpoint(tmp_path / "made", "old-v1.0.0", config, shards=3, container="bin")
    old = tmp_path / "made" / "old-v1.0.0"
    before = read_manifest(old)
    (old / "manifest.json").unlink()
    (old / "tokenizer.json").unlink()
    train(tmp_path / "sentencepiece", **KINDS["bpe as llama"], user_defined_symbols=["<|image_pad|>"])
    for path in (tmp_path / "sentencepiece").iterdir():
        path.rename(old / path.name)
    made = imported(old, tmp_path / "models")
    assert (made.manifest.vision, made.manifest.language) == (before.vision, before.language)
    assert '"<|image_pad|>"' in (made.folder / "tokenizer.json").read_text()
    assert not (made.folder / "tokenizer.model").exists()
