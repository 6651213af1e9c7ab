"""The model of the comparison, in each engine's format.

It has Qwen3 0.6B's shape and random bfloat16 weights. The folder contains `tandem/` (a model store) and `huggingface/`,
both with the same tensors. The llama.cpp runner converts `huggingface/` to `model.gguf`, since only its environment has
the library for that.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from checkpoint.families import LanguageConfig, ResamplerModelConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
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
        tensors = {_their_name(name): tensor for name, tensor in half.tensors.items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(_their_config(), indent=1) + "\n")
        partial.rename(root / "huggingface")


def _their_name(name: str) -> str:
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return name


def _their_config() -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": SHAPE.width,
        "num_hidden_layers": SHAPE.num_layers,
        "num_attention_heads": SHAPE.num_heads,
        "num_key_value_heads": SHAPE.num_kv_heads,
        "head_dim": SHAPE.head_dim,
        "intermediate_size": SHAPE.mlp_width,
        "vocab_size": SHAPE.vocab_size,
        "max_position_embeddings": SHAPE.context_length,
        "rms_norm_eps": SHAPE.norm_eps,
        "rope_theta": SHAPE.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "bos_token_id": None,
        "eos_token_id": SHAPE.eos_token_ids[0],
    }
