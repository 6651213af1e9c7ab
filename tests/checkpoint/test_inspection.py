from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint.families import QUERY, ResamplerModelConfig, TensorSpec, layout
from checkpoint.inspection import FIRST_Q_PROJECTION, Row, inspect_checkpoint, inspect_preset
from checkpoint.memory import kv_bytes_per_token, weight_bytes
from checkpoint.presets import RESAMPLER_PRESETS

Copy = Callable[..., Path]


@pytest.mark.parametrize("name", RESAMPLER_PRESETS)
def test_rows_account_for_every_tensor_and_parameter(name: str) -> None:
    found, specs = inspect_preset(name, RESAMPLER_PRESETS[name]), layout(RESAMPLER_PRESETS[name])
    assert sum(row.count for row in found.rows) == len(specs)
    assert sum(row.num_parameters for row in found.rows) == found.num_parameters
    assert sum(found.parameters.values()) == found.num_parameters


@pytest.mark.parametrize("name", RESAMPLER_PRESETS)
def test_a_row_holds_tensors_of_one_shape(name: str) -> None:
    for row in inspect_preset(name, RESAMPLER_PRESETS[name]).rows:
        elements = torch.Size(row.shape).numel()
        assert row.num_parameters == row.count * elements


def test_the_full_size_model_is_counted() -> None:
    found = inspect_preset("qwen3-vl-8b", RESAMPLER_PRESETS["qwen3-vl-8b"])
    # By hand: 24 blocks, a patch embedding, 32 layers of 40.0 M attention and 135.3 M feed-forward, one embedding.
    assert found.num_parameters == 6_676_012_032
    assert found.parameters_saved_by_tying == 151_936 * 4096
    assert (found.num_heads, found.num_kv_heads) == (32, 8)
    assert (found.num_visual_tokens, found.visual_token_width) == (32, 4096)
    assert found.query is not None
    assert found.query.shape == (32, 1024)
    assert found.first_q_projection.shape == (4096, 4096)
    assert found.kv_bytes_per_token == 128 * 1024
    assert found.disk_bytes is None


def test_a_separate_head_counts_and_saves_nothing() -> None:
    tied = RESAMPLER_PRESETS["tiny"]
    untied = tied.model_copy(update={"language": tied.language.model_copy(update={"tied_embeddings": False})})
    found = inspect_preset("untied", untied)
    assert not found.tied_head
    assert found.parameters_saved_by_tying == 0
    assert found.num_parameters == inspect_preset("tied", tied).num_parameters + 264 * 64


def test_a_model_without_resampler_has_no_query() -> None:
    assert inspect_preset("direct", RESAMPLER_PRESETS["qwen3-vl-8b-direct"]).query is None


def test_all_layers_share_one_row() -> None:
    rows = {row.pattern: row for row in inspect_preset("tiny", RESAMPLER_PRESETS["tiny"]).rows}
    row = rows["language_model.layers.N.self_attn.q_proj.weight"]
    assert row == Row("language_model.layers.N.self_attn.q_proj.weight", 2, (64, 64), None, "queries", 2 * 64 * 64)


@pytest.mark.parametrize("stored", ["single", "shards", "bin"])
def test_a_checkpoint_is_described_from_its_files(checkpoint: Copy, stored: str) -> None:
    folder = checkpoint(stored)
    found = inspect_checkpoint(folder)
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    assert found.disk_bytes == sum(path.stat().st_size for path in files)
    assert {row.dtype for row in found.rows} == {"bfloat16"}
    assert found.num_parameters == inspect_preset("tiny", RESAMPLER_PRESETS["tiny"]).num_parameters


def test_the_query_and_the_first_projection_have_statistics(checkpoint: Copy) -> None:
    folder = checkpoint()
    found, tensors = inspect_checkpoint(folder), load_file(folder / f"{folder.name}.safetensors")
    assert found.query is not None
    for facts, name in ((found.query, QUERY), (found.first_q_projection, FIRST_Q_PROJECTION)):
        elements = tensors[name].double()
        assert facts.name == name
        assert facts.mean == pytest.approx(elements.mean().item(), abs=1e-6)
        assert facts.std == pytest.approx(elements.std().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("spec", "bf16", "int8", "int4"),
    [
        (TensorSpec("a", (10, 128), "language", "linear", ""), 2560, 1280 + 20, 640 + 20),
        (
            TensorSpec("a", (10, 129), "language", "output", ""),
            2580,
            1290 + 20,
            650 + 40,
        ),  # 2 groups
        (TensorSpec("a", (10, 128), "language", "embedding", ""), 2560, 2560, 2560),
        (TensorSpec("a", (10,), "language", "scale", ""), 20, 20, 20),
    ],
)
def test_memory_follows_the_counting_rule(spec: TensorSpec, bf16: int, int8: int, int4: int) -> None:
    assert weight_bytes([spec], "bf16") == bf16
    assert weight_bytes([spec], "int8") == int8
    assert weight_bytes([spec], "int4") == int4


@pytest.mark.parametrize("name", RESAMPLER_PRESETS)
def test_fewer_bits_take_less_memory(name: str) -> None:
    found = inspect_preset(name, RESAMPLER_PRESETS[name]).weight_bytes
    assert (
        found["int4"]
        < found["int8"]
        < found["bf16"]
        == 2 * inspect_preset(name, RESAMPLER_PRESETS[name]).num_parameters
    )


def test_a_token_takes_keys_and_values_of_every_layer() -> None:
    config: ResamplerModelConfig = RESAMPLER_PRESETS["tiny"]
    keys = torch.zeros(config.language.num_layers, config.language.num_kv_heads, config.language.head_dim).bfloat16()
    assert kv_bytes_per_token(config.language) == 2 * keys.nbytes
