"""The model of the comparison, in each engine's format.

It has Qwen3 0.6B's shape and random bfloat16 weights. The folder contains `tandem/` (a model store) and `huggingface/`,
both with the same tensors. The llama.cpp runner converts `huggingface/` to `model.gguf`, since only its environment has
the library for that.

With 8 or 4 bits a weight the store has more checkpoints, and vLLM reads `huggingface-w8a8/`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.tools.random_low_bit import quantize_random
from checkpoint.compressed_tensors import stored_tensors
from checkpoint.families import LanguageConfig, ResamplerModelConfig, Scheme
from checkpoint.hub_form import decoder_fields
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.rounding import Grid, to_nearest
from checkpoint.store import ModelStore
from checkpoint.weights import load_half

TAG = "qwen3-0.6b-random-v1.0.0"
SHAPE = LanguageConfig(
    width=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=3072,
    vocab_size=151936,
    context_length=8192,
    qk_norm=True,
    eos_token_ids=(2,),
)
WEIGHT_BYTES = 1_192_099_840  # decoder in bfloat16. The tied head reads the embedding once per step.
CACHE_BYTES_PER_TOKEN = 2 * SHAPE.num_layers * SHAPE.num_kv_heads * SHAPE.head_dim * 2  # keys and values, bfloat16

# Our part of a name -> Hugging Face's. All other parts are equal.
_RENAMED = {
    "language_model.": "model.",
    ".mlp.w1.": ".mlp.gate_proj.",
    ".mlp.w3.": ".mlp.up_proj.",
    ".mlp.w2.": ".mlp.down_proj.",
}
# Name -> scheme, and inputs that share a scale with 4 bits.
LOW_BIT_FORMS: dict[str, tuple[Scheme, int]] = {
    "w8a8": ("w8a8", 0),
    "w4a16-g128": ("w4a16", 128),
    "w4a16-g32": ("w4a16", 32),
    "w4a8-g128": ("w4a8", 128),
    "w4a8-g32": ("w4a8", 32),
}
_ROUNDED = {"num_bits": 8, "type": "int", "symmetric": True}
# As llmcompressor writes it: the head stays in bfloat16, since it is the embedding.
_W8A8_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_ROUNDED, "strategy": "channel", "dynamic": False},
            "input_activations": {**_ROUNDED, "strategy": "token", "dynamic": True},
        }
    },
}


def make_checkpoints(root: Path, *, with_peers: bool) -> None:
    """Write the missing checkpoints, each 1.2 GB, atomically."""
    if TAG not in ModelStore(root / "tandem").tags():
        vision = RESAMPLER_PRESETS["tiny"]  # a checkpoint needs a vision half, which nothing reads here
        config = ResamplerModelConfig(vision=vision.vision, resampler=vision.resampler, language=SHAPE)
        create_checkpoint(root / "tandem", TAG, config)
    if with_peers and not (root / "huggingface").exists():
        partial = root / "huggingface.partial"
        partial.mkdir(exist_ok=True)
        half = load_half(ModelStore(root / "tandem").folder(TAG), "language", dtype=torch.bfloat16)
        tensors = {huggingface_name(name): tensor for name, tensor in half.tensors.items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(huggingface_config(SHAPE), indent=1) + "\n")
        partial.rename(root / "huggingface")


def low_bit_tag(form: str) -> str:
    """Return the tag of one of `LOW_BIT_FORMS`."""
    return f"qwen3-0.6b-random-{form}-v1.0.0"


def make_low_bit_checkpoints(root: Path, forms: Iterable[str], *, with_peers: bool) -> None:
    """Write the missing checkpoints with few bits."""
    make_checkpoints(root, with_peers=with_peers)
    for form in forms:
        if low_bit_tag(form) not in ModelStore(root / "tandem").tags():
            quantize_random(root / "tandem", TAG, low_bit_tag(form), *LOW_BIT_FORMS[form])
    target = root / "huggingface-w8a8"
    if with_peers and not target.exists():
        partial = target.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        half = load_half(ModelStore(root / "tandem").folder(TAG), "language", dtype=torch.bfloat16)
        tensors: dict[str, Tensor] = {}
        for name, tensor in half.tensors.items():
            theirs = huggingface_name(name)
            if ".layers." in name and tensor.dim() == 2:
                weight = to_nearest(tensor, Grid("w8a8", tensor.shape[1]))
                tensors |= stored_tensors(theirs.removesuffix(".weight"), weight)
            else:
                tensors[theirs] = tensor
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        config = {**huggingface_config(SHAPE), "quantization_config": _W8A8_CONFIG}
        (partial / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        partial.rename(target)


def huggingface_name(name: str) -> str:
    """Return the name of a tensor in transformers."""
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return name


def huggingface_config(language: LanguageConfig) -> dict[str, Any]:
    """Return the `config.json` of a decoder for transformers.

    Args:
        language: a decoder like Qwen3: norms of heads, no biases, plain rotary positions.
    """
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "rope_theta": language.rope_theta,
        **decoder_fields(language),
        "tie_word_embeddings": language.tied_embeddings,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": language.eos_token_ids[0],
    }
