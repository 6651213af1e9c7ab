"""The configuration of Hub folders, and refusals by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chassis.errors import FailedPrecondition
from checkpoint.families import QWEN3_VL_PRESETS, SamplingDefaults
from checkpoint.hub_config import read_hub_config
from checkpoint.hub_files import Generation
from tests.hub_folder import edit_json, write_json

# `config.json` of the released 2B, without fields that concern training.
RELEASED_2B = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "top_p": 0.8,
    "top_k": 20,
    "temperature": 0.7,
    "repetition_penalty": 1.0,
    "transformers_version": "4.56.0",
}
SAMPLING = SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the configuration of the released 2B."""
    for name, content in (
        ("config.json", RELEASED_2B),
        ("preprocessor_config.json", PREPROCESSOR),
        ("generation_config.json", GENERATION),
    ):
        write_json(tmp_path / name, content)
    return tmp_path


def token_of(token_id: int) -> str | None:
    return "<|image_pad|>" if token_id == 151655 else None


def put(path: str, value: object) -> Callable[[Any], None]:
    """Return a change that sets a field, or removes it."""

    def change(content: Any) -> None:
        *outer, name = path.split(".")
        for part in outer:
            content = content[part]
        if value is None:
            del content[name]
        else:
            content[name] = value

    return change


@pytest.mark.parametrize(
    ("preset", "text", "vision", "tied"),
    [
        ("qwen3-vl-2b-instruct", {}, {}, True),
        (
            "qwen3-vl-4b-instruct",
            {
                "hidden_size": 2560,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "intermediate_size": 9728,
            },
            {"out_hidden_size": 2560},
            True,
        ),
        (
            "qwen3-vl-8b-instruct",
            {
                "hidden_size": 4096,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "intermediate_size": 12288,
                "tie_word_embeddings": False,
            },
            {
                "out_hidden_size": 4096,
                "hidden_size": 1152,
                "depth": 27,
                "intermediate_size": 4304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            False,
        ),
    ],
)
def test_a_released_configuration_is_its_preset(
    folder: Path, preset: str, text: dict[str, Any], vision: dict[str, Any], tied: bool
) -> None:
    def change(config: Any) -> None:
        config["text_config"].update(text)
        config["vision_config"].update(vision)
        config["tie_word_embeddings"] = tied

    edit_json(folder / "config.json", change)
    expected = QWEN3_VL_PRESETS[preset].model_copy(update={"default_sampling": SAMPLING})
    assert read_hub_config(folder, token_of) == expected


def test_the_form_of_newer_transformers_gives_the_same_configuration(folder: Path) -> None:
    before = read_hub_config(folder, token_of)

    def change(config: Any) -> None:
        text, vision = config["text_config"], config["vision_config"]
        text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": float(text.pop("rope_theta"))}
        del text["tie_word_embeddings"]
        vision |= {"model_type": "qwen3_vl_vision", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}

    edit_json(folder / "config.json", change)
    assert read_hub_config(folder, token_of) == before


def test_the_older_names_of_the_pixel_budget_win(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", lambda content: content.update(min_pixels=1024, max_pixels=4096))
    config = read_hub_config(folder, token_of)
    assert [config.visual_tokens_of(side, side) for side in (1, 9999)] == [1, 4]


CONFIG, IMAGES, ANSWERS = "config.json", "preprocessor_config.json", "generation_config.json"


@pytest.mark.parametrize(
    ("file", "path", "value", "words"),
    [
        (CONFIG, "model_type", "qwen2_5_vl", "'qwen2_5_vl', but only these can be imported: qwen3_vl"),
        (CONFIG, "model_type", "qwen3_vl_moe", "'qwen3_vl_moe'"),
        (CONFIG, "text_config", None, "text_config: Field required"),
        (CONFIG, "vision_config", None, "vision_config: Field required"),
        (CONFIG, "image_token_id", None, "image_token_id: Field required"),
        (CONFIG, "image_token_id", 7, "no token with the id 7, which config.json gives as image_token_id"),
        (CONFIG, "quantization_config", {"quant_method": "fp8"}, "quantization_config: .*quantized weights by fp8"),
        (CONFIG, "text_config.model_type", "qwen3_text", "text_config.model_type: .*'qwen3_vl_text'"),
        (CONFIG, "text_config.hidden_act", "gelu", "text_config.hidden_act: .*'silu'"),
        (CONFIG, "text_config.attention_bias", True, "text_config.attention_bias: .*False"),
        (CONFIG, "text_config.hidden_size", None, "text_config.hidden_size: Field required"),
        (CONFIG, "text_config.vocab_size", -1, "text_config.vocab_size: .*greater than 0"),
        (CONFIG, "text_config.rope_theta", None, "text_config: .*rope_theta is missing"),
        (CONFIG, "text_config.rope_scaling", None, "text_config: .*one must give mrope_section"),
        (CONFIG, "text_config.rope_scaling.rope_type", "yarn", "text_config.rope_scaling.rope_type: .*'default'"),
        (CONFIG, "text_config.rope_scaling.type", "linear", "text_config.rope_scaling.type: .*'default' or 'mrope'"),
        (CONFIG, "text_config.rope_scaling.factor", 4.0, "text_config.rope_scaling.factor: Extra inputs"),
        (CONFIG, "text_config.rope_scaling.mrope_interleaved", False, "mrope_interleaved: .*True"),
        (CONFIG, "text_config.rope_scaling.mrope_section", [16, 24, 23], "does not add up to half of 128"),
        (CONFIG, "text_config.num_key_value_heads", 5, "num_heads 16 is not a multiple of num_kv_heads 5"),
        (CONFIG, "vision_config.model_type", "qwen2_5_vl", "vision_config.model_type: .*'qwen3_vl'"),
        (CONFIG, "vision_config.hidden_act", "gelu", "vision_config.hidden_act: .*'gelu_pytorch_tanh'"),
        (CONFIG, "vision_config.in_channels", 1, "vision_config.in_channels: .*3"),
        (CONFIG, "vision_config.rope_parameters", {"rope_type": "dynamic"}, "vision_config.rope_parameters.rope_type"),
        (CONFIG, "vision_config.num_position_embeddings", 2305, "num_positions 2305 is not a square"),
        (CONFIG, "vision_config.deepstack_visual_indexes", [5, 11, 24], "deepstack_layers are not all below"),
        (CONFIG, "vision_config.out_hidden_size", 1024, "vision_config.out_hidden_size is 1024, not 2048"),
        (CONFIG, "vision_config.patch_size", 14, "vision_config.patch_size is 14, not 16"),
        (CONFIG, "vision_config.temporal_patch_size", 1, "vision_config.temporal_patch_size is 1, not 2"),
        (CONFIG, "vision_config.spatial_merge_size", 4, "vision_config.spatial_merge_size is 4, not 2"),
        (IMAGES, "image_processor_type", "CLIPImageProcessor", "image_processor_type: .*'Qwen2VLImageProcessor'"),
        (IMAGES, "size", None, "size is missing"),
        (IMAGES, "size.longest_edge", None, "size.longest_edge: Field required"),
        (IMAGES, "size.longest_edge", 1024, "min_pixels is above max_pixels"),
        (IMAGES, "image_mean", None, "image_mean: Field required"),
        (IMAGES, "image_std", [0.5, 0.5, 0.0], "image_std must be above 0"),
        (IMAGES, "patch_size", None, "patch_size: Field required"),
        (IMAGES, "do_resize", False, "do_resize: .*True"),
        (IMAGES, "do_normalize", False, "do_normalize: .*True"),
        (IMAGES, "resample", 2, "resample: .*3"),
        (IMAGES, "rescale_factor", 1.0, "rescale_factor: .*1/255"),
        (ANSWERS, "temperature", -1.0, "temperature: .*greater than 0"),
        (ANSWERS, "top_p", 1.5, "top_p: .*less than or equal to 1"),
        (ANSWERS, "top_k", -1, "top_k: .*greater than or equal to 0"),
        (ANSWERS, "repetition_penalty", 0.0, "repetition_penalty: .*greater than 0"),
        (ANSWERS, "eos_token_id", [151936], "eos_token_ids .* are not all below vocab_size"),
    ],
)
def test_an_unsupported_field_is_named(folder: Path, file: str, path: str, value: object, words: str) -> None:
    edit_json(folder / file, put(path, value))
    with pytest.raises(FailedPrecondition, match=words) as caught:
        read_hub_config(folder, token_of)
    assert caught.value.reason == "BAD_CHECKPOINT"
    assert str(folder.parent) not in caught.value.message


def test_every_bad_field_of_a_file_is_named(folder: Path) -> None:
    for path, value in (("text_config.hidden_act", "relu"), ("vision_config.depth", None)):
        edit_json(folder / CONFIG, put(path, value))
    with pytest.raises(FailedPrecondition, match=r"text_config\.hidden_act.*; vision_config\.depth"):
        read_hub_config(folder, token_of)


@pytest.mark.parametrize("file", [CONFIG, IMAGES, ANSWERS])
@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_damaged_file_is_named(folder: Path, file: str, text: str) -> None:
    (folder / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(FailedPrecondition, match=file):
        read_hub_config(folder, token_of)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (GENERATION, SAMPLING),
        ({"do_sample": True}, SamplingDefaults(temperature=1.0)),
        ({"do_sample": False, "temperature": 0.7, "top_k": 20}, SamplingDefaults()),
        ({"temperature": 0.7, "top_p": None}, SamplingDefaults()),
        ({"repetition_penalty": 1.05}, SamplingDefaults(repetition_penalty=1.05)),
        ({"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05}, None),
    ],
)
def test_sampling_options_count_only_where_transformers_samples(
    file: dict[str, Any], expected: SamplingDefaults | None
) -> None:
    found = Generation.model_validate_json(json.dumps(file)).sampling()
    assert found == (expected or SamplingDefaults(temperature=0.1, top_k=1, top_p=0.001, repetition_penalty=1.05))


def test_end_tokens_come_from_the_model_if_generation_names_none(folder: Path) -> None:
    edit_json(folder / ANSWERS, put("eos_token_id", None))
    assert read_hub_config(folder, token_of).language.eos_token_ids == (151645,)
    edit_json(folder / CONFIG, put("text_config.eos_token_id", None))
    with pytest.raises(FailedPrecondition, match=r"names no eos_token_id in generation_config\.json"):
        read_hub_config(folder, token_of)
