"""A tiny decoder by transformers, and its weights in a model store."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from checkpoint.families import LanguageConfig, ResamplerModelConfig
from checkpoint.initial import RandomTensors
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.saving import save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import byte_tokenizer

STABLE, CANARY = "tiny-v1.0.0", "tiny-v1.1.0"  # equal weights
NUM_TOKENS = 64

_LANGUAGE = LanguageConfig(
    width=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,  # the smallest that vLLM has on a CPU
    mlp_width=128,
    vocab_size=264,
    context_length=1024,
    rope_theta=1e6,
    qk_norm=True,
    eos_token_ids=(2,),
)
CONFIG: ResamplerModelConfig = RESAMPLER_PRESETS["tiny"].model_copy(update={"language": _LANGUAGE})
_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def make_theirs() -> Any:
    """Return a decoder whose answers depend on the whole prompt."""
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=_LANGUAGE.width,
        num_hidden_layers=_LANGUAGE.num_layers,
        num_attention_heads=_LANGUAGE.num_heads,
        num_key_value_heads=_LANGUAGE.num_kv_heads,
        head_dim=_LANGUAGE.head_dim,
        intermediate_size=_LANGUAGE.mlp_width,
        vocab_size=_LANGUAGE.vocab_size,
        max_position_embeddings=_LANGUAGE.context_length,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": _LANGUAGE.rope_theta},
        rms_norm_eps=_LANGUAGE.norm_eps,
        initializer_range=0.15,
    )
    model: Any = Qwen3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape)  # all ones would hide a missing norm
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def make_store(root: Path, theirs: Any) -> Path:
    """Write both tags, with a random vision half."""
    random = RandomTensors(CONFIG, seed=0, dtype=torch.float32)
    tensors: dict[str, Tensor] = {spec.name: random[spec.name] for spec in CONFIG.tensors() if spec.half == "vision"}
    for name, tensor in theirs.state_dict().items():
        if name != "lm_head.weight":
            ours = ".".join(_NAMES.get(part, part) for part in name.split("."))
            tensors["language_model." + ours.removeprefix("model.")] = tensor
    for tag in (STABLE, CANARY):
        with ModelStore(root).create(tag) as folder:
            save(folder, CONFIG, tensors, tag, tokenizer_json=byte_tokenizer().to_str(), dtype=torch.float32)
    return root
