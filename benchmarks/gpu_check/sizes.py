"""Sizes of the checks, for a GPU and for tests."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from checkpoint.families import LanguageConfig, ResamplerModelConfig
from checkpoint.presets import RESAMPLER_PRESETS
from vision_service.backends import BACKENDS, BackendName


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """All numbers of a run."""

    device: torch.device
    dtype: torch.dtype  # of the measured models
    compiles: bool  # whether torch.compile is measured, which takes long
    # Limits of the machine.
    bandwidth_bytes: int
    matmul_side: int
    # Correctness of the decoder, in float32.
    small: LanguageConfig
    answer_tokens: int
    # Attention of decoding sequences: (sequences, cached tokens). Of prompts: (new tokens, cached tokens).
    decode_shapes: tuple[tuple[int, int], ...]
    prefill_shapes: tuple[tuple[int, int], ...]
    attention_heads: tuple[int, int, int]  # query heads, key-value heads, head dim
    # Speed of decoders.
    decoders: Mapping[str, LanguageConfig]
    num_sequences: tuple[int, ...]
    context: int  # cached tokens of each
    steps: int
    prompt_tokens: tuple[int, ...]  # of one prefill step
    # The whole model.
    model: ResamplerModelConfig
    image_batches: tuple[int, ...]
    backends: tuple[BackendName, ...]  # of the vision half
    callers: int
    questions: int  # of each caller
    question_tokens: int  # of each answer


# Qwen3 0.6B, and the decoder of the full-size preset.
_SHAPE_06B = LanguageConfig(
    width=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=3072,
    qk_norm=True,
    eos_token_ids=(2,),
)
_SMALL = LanguageConfig(
    width=512,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    mlp_width=1024,
    vocab_size=2048,
    context_length=1024,
    qk_norm=True,
    eos_token_ids=(2,),
)

FULL = Sizes(
    device=torch.device("cuda:0"),
    dtype=torch.bfloat16,
    compiles=True,
    bandwidth_bytes=4 << 30,
    matmul_side=8192,
    small=_SMALL,
    answer_tokens=32,
    decode_shapes=((1, 512), (1, 8192), (8, 2048), (32, 1024), (128, 1024)),
    prefill_shapes=((512, 512), (2048, 2048), (512, 4096)),
    attention_heads=(32, 8, 128),
    decoders={"0.6B": _SHAPE_06B, "8B": RESAMPLER_PRESETS["qwen3-vl-8b"].language},
    num_sequences=(1, 8, 32, 128),
    context=512,
    steps=24,
    prompt_tokens=(512, 2048, 8192),
    model=RESAMPLER_PRESETS["qwen3-vl-8b"],
    image_batches=(1, 4, 16, 64),
    backends=BACKENDS,
    callers=16,
    questions=16,
    question_tokens=16,
)

TINY = Sizes(
    device=torch.device("cpu"),
    dtype=torch.float32,
    compiles=False,
    bandwidth_bytes=1 << 22,
    matmul_side=128,
    small=_SMALL.model_copy(update={"width": 64, "head_dim": 16, "num_layers": 2, "mlp_width": 96, "vocab_size": 97}),
    answer_tokens=8,
    decode_shapes=((1, 64), (3, 40)),
    prefill_shapes=((16, 16), (8, 24)),
    attention_heads=(4, 2, 16),
    decoders={"tiny": RESAMPLER_PRESETS["tiny"].language},
    num_sequences=(1, 3),
    context=20,
    steps=2,
    prompt_tokens=(16,),
    model=RESAMPLER_PRESETS["tiny"],
    image_batches=(1, 2),
    backends=("torch",),  # an export takes longer than all other checks together
    callers=2,
    questions=2,
    question_tokens=3,
)

SIZES = {"full": FULL, "tiny": TINY}
