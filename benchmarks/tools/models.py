"""Models and releases that benchmarks measure."""

import argparse
from pathlib import Path
from typing import Any

from checkpoint.families import LanguageConfig, ResamplerModelConfig
from checkpoint.presets import RESAMPLER_PRESETS
from tandem.commands.up import newest_release

# Flags of every benchmark that measures a release of a model store.
RELEASE_OPTIONS: dict[str, dict[str, Any]] = {
    "models": {"type": Path, "default": Path("models"), "help": "folder of the model store (default: models)"},
    "release": {"default": "", "help": "tag of the release (default: the newest in the store)"},
}


def chosen_release(options: argparse.Namespace) -> str:
    """Return the release that `RELEASE_OPTIONS` choose.

    Raises:
        NotFound: the model store is empty.
    """
    return options.release or newest_release(options.models)


def full_size_encoder() -> ResamplerModelConfig:
    """Return a full-size vision half with a small decoder.

    The vision half is ViT-L/14 with a six-layer resampler. Two cores can run the decoder.
    """
    decoder = LanguageConfig(
        width=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        mlp_width=1536,
        vocab_size=264,
        context_length=2048,
        eos_token_ids=(2,),
    )
    return RESAMPLER_PRESETS["qwen3-vl-8b"].model_copy(update={"language": decoder})
