"""Hub folders that are refused by name, and leave nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chassis.errors import FailedPrecondition, InvalidArgument, TandemError
from checkpoint.importing import import_folder
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from tests.hub_folder import edit_json, write_hub_folder, write_json

TAG = "qwen3-vl-tiny-v1.0.0"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 7\n"


def refused(folder: Path, reason: str) -> str:
    """Return the message of a refused import.

    The message must not hold a path, and the model store must stay empty.
    """
    models = folder.parent / "models"
    with pytest.raises(TandemError) as caught:
        import_folder(folder, models, TAG)
    assert caught.value.reason == reason, caught.value.message
    assert not models.exists()
    assert str(folder.parent) not in caught.value.message
    return caught.value.message


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """Return a Hub folder with one weight file."""
    return write_hub_folder(tmp_path / "Qwen3-VL-tiny", max_shard_size="1GB")


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a folder with one weight file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "chat_template.jinja"],
)
def test_a_missing_file_is_named(hub: Path, name: str) -> None:
    (hub / name).unlink()
    assert refused(hub, "MISSING_FILES") == (
        f"The folder Qwen3-VL-tiny lacks {name}: download what is missing, then import again."
    )


def test_all_missing_files_are_named_at_once(hub: Path) -> None:
    shards = sorted(hub.glob("*.safetensors"))
    for path in (shards[1], shards[4], hub / "tokenizer.json", hub / "generation_config.json"):
        path.unlink()
    message = refused(hub, "MISSING_FILES")
    assert f"lacks generation_config.json, tokenizer.json, {shards[1].name}, {shards[4].name}:" in message


def test_missing_weights_are_named(single: Path) -> None:
    (single / "model.safetensors").unlink()
    assert "lacks model.safetensors:" in refused(single, "MISSING_FILES")


def test_a_link_to_a_file_that_was_not_downloaded_is_missing(hub: Path) -> None:
    path = sorted(hub.glob("*.safetensors"))[2]
    path.unlink()
    path.symlink_to("../../blobs/0123")
    assert f"lacks {path.name}:" in refused(hub, "MISSING_FILES")


@pytest.mark.parametrize("pattern", ["tokenizer.json", "model-00003-*"])
def test_a_git_lfs_pointer_is_missing(hub: Path, pattern: str) -> None:
    [path] = hub.glob(pattern)
    path.write_text(POINTER)
    assert f"lacks {path.name}:" in refused(hub, "MISSING_FILES")


def test_a_git_lfs_pointer_for_all_weights_is_missing(single: Path) -> None:
    (single / "model.safetensors").write_text(POINTER)
    assert "lacks model.safetensors:" in refused(single, "MISSING_FILES")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no folder nothing"):
        import_folder(tmp_path / "nothing", tmp_path / "models", TAG)


def test_a_missing_tensor_is_named(single: Path) -> None:
    edit(single, lambda tensors: tensors.pop("model.visual.merger.norm.bias"))
    assert refused(single, "MISSING_TENSORS").endswith("lacks visual.merger.norm.bias.")


def test_a_tensor_missing_from_its_shard_is_named(hub: Path) -> None:
    path = sorted(hub.glob("*.safetensors"))[0]
    name, *others = load_file(path).items()
    save_file(dict(others), path)
    assert name[0] in refused(hub, "MISSING_TENSORS")


@pytest.mark.parametrize(
    "name",
    [
        "model.visual.blocks.4.norm1.weight",
        "model.visual.deepstack_merger_list.3.norm.weight",
        "model.language_model.layers.0.self_attn.q_proj.bias",
        "model.audio.weight",
        "score.weight",
    ],
)
def test_an_unexpected_tensor_is_named(single: Path, name: str) -> None:
    edit(single, lambda tensors: tensors.update({name: torch.ones(3)}))
    assert name.removeprefix("model.") in refused(single, "UNEXPECTED_TENSORS")


def test_a_head_that_differs_from_a_tied_embedding_is_refused(single: Path) -> None:
    embedding = "model.language_model.embed_tokens.weight"
    edit(single, lambda tensors: tensors.update({"lm_head.weight": -tensors[embedding]}))
    assert "ties them" in refused(single, "UNEXPECTED_TENSORS")


def test_a_missing_head_of_an_untied_model_is_named(single: Path) -> None:
    edit_json(single / "config.json", lambda config: config.update(tie_word_embeddings=False))
    assert "lacks lm_head.weight" in refused(single, "MISSING_TENSORS")


def test_a_wrong_shape_is_named_with_both_shapes(single: Path) -> None:
    name = "model.language_model.layers.2.mlp.down_proj.weight"
    edit(single, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    message = refused(single, "WRONG_SHAPE")
    assert "language_model.layers.2.mlp.w2.weight is [128, 64], not [64, 128]" in message


def test_quantized_tensors_are_refused(single: Path) -> None:
    name = "model.language_model.layers.2.mlp.down_proj.weight"
    edit(single, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    assert name in refused(single, "BAD_CHECKPOINT")


def test_a_truncated_weight_file_is_named(hub: Path) -> None:
    path = sorted(hub.glob("*.safetensors"))[5]
    path.write_bytes(path.read_bytes()[:-1])
    assert path.name in refused(hub, "BAD_CHECKPOINT")


def test_a_tokenizer_without_the_image_token_is_refused(hub: Path) -> None:
    edit_json(hub / "config.json", lambda config: config.update(image_token_id=9999))
    assert "no token with the id 9999" in refused(hub, "BAD_CHECKPOINT")


def test_a_tokenizer_beyond_the_vocabulary_is_refused(hub: Path) -> None:
    edit_json(hub / "config.json", lambda config: config["text_config"].update(vocab_size=262))
    assert "token id 262" in refused(hub, "BAD_CHECKPOINT")


@pytest.mark.parametrize("text", ["", "{}", "\xff\xfe"])
def test_a_damaged_tokenizer_is_named(hub: Path, text: str) -> None:
    (hub / "tokenizer.json").write_bytes(text.encode("latin-1"))
    assert "tokenizer.json" in refused(hub, "BAD_CHECKPOINT")


@pytest.mark.parametrize("content", [{"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}])
def test_a_file_without_a_chat_template_does_not_replace_it(hub: Path, content: object) -> None:
    (hub / "chat_template.jinja").unlink()
    write_json(hub / "tokenizer_config.json", content)
    assert "lacks chat_template.jinja:" in refused(hub, "MISSING_FILES")


def test_a_damaged_chat_template_is_named(hub: Path) -> None:
    (hub / "chat_template.jinja").unlink()
    write_json(hub / "chat_template.json", {"chat_template": 3})
    assert "chat_template.json" in refused(hub, "BAD_CHECKPOINT")


def test_a_damaged_index_is_named(hub: Path) -> None:
    [index] = hub.glob("*.index.json")
    index.write_text("{")
    assert index.name in refused(hub, "BAD_CHECKPOINT")


def test_a_folder_of_ours_needs_no_files_of_transformers(tmp_path: Path) -> None:
    create_checkpoint(tmp_path / "made", "old-v1.0.0", RESAMPLER_PRESETS["tiny"])
    old = tmp_path / "made" / "old-v1.0.0"
    (old / "tokenizer.json").unlink()
    assert "old-v1.0.0 lacks tokenizer.json:" in refused(old, "MISSING_FILES")


def test_an_existing_tag_is_refused_and_stays(hub: Path, tmp_path: Path) -> None:
    before = import_folder(hub, tmp_path / "store", TAG).manifest
    with pytest.raises(FailedPrecondition) as caught:
        import_folder(hub, tmp_path / "store", TAG)
    assert caught.value.reason == "TAG_EXISTS"
    assert ModelStore(tmp_path / "store").tags() == [before.tag]


def test_a_bad_tag_is_refused(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is not a tag"):
        import_folder(hub, tmp_path / "store", "../qwen")
    assert not (tmp_path / "store").exists()
