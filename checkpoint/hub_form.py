"""Names and fields of a model in the Hub's form.

Others read a model of ours by them. `checkpoint.hub_config` reads the same fields.
"""

from typing import Any

from checkpoint.families import HEAD, LanguageConfig, Qwen3VLConfig

# Our part of a name -> the Hub's. All other parts are equal.
_RENAMED = {".mlp.w1.": ".mlp.gate_proj.", ".mlp.w3.": ".mlp.up_proj.", ".mlp.w2.": ".mlp.down_proj."}


def hub_name(name: str, *, has_tower: bool) -> str:
    """Return the Hub's name of a tensor.

    Args:
        name: of ours.
        has_tower: whether the model is one of text and images, whose decoder is a part.
    """
    if name == HEAD:
        return name
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return f"model.{name if has_tower else name.removeprefix('language_model.')}"


def decoder_fields(language: LanguageConfig) -> dict[str, Any]:
    """Return the fields of `config.json` that all decoders have."""
    return {
        "hidden_size": language.width,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        "head_dim": language.head_dim,
        "intermediate_size": language.mlp_width,
        "vocab_size": language.vocab_size,
        "max_position_embeddings": language.context_length,
        "rms_norm_eps": language.norm_eps,
        "hidden_act": "silu",
        "attention_bias": language.attention_bias,
    }


def tower_fields(config: Qwen3VLConfig) -> dict[str, Any]:
    """Return 'vision_config' of `config.json`."""
    vision = config.vision
    return {
        "model_type": "qwen3_vl",
        "depth": vision.num_layers,
        "hidden_size": vision.width,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": vision.mlp_width,
        "num_heads": vision.num_heads,
        "in_channels": 3,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "spatial_merge_size": vision.merge_size,
        "out_hidden_size": config.language.width,
        "num_position_embeddings": vision.num_positions,
        "deepstack_visual_indexes": list(vision.deepstack_layers),
    }


def preprocessor_fields(config: Qwen3VLConfig, **kind: str) -> dict[str, Any]:
    """Return `preprocessor_config.json`, or that of videos.

    Args:
        config: of the model.
        kind: the class of the preprocessor, under the Hub's key.
    """
    vision = config.vision
    return {
        "size": {"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.merge_size,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "processor_class": "Qwen3VLProcessor",
        **kind,
    }
