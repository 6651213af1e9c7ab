"""Model shapes by name, for `tandem checkpoint --preset`."""

from checkpoint.families import (
    QWEN3_VL_PRESETS,
    LanguageConfig,
    ModelConfig,
    Qwen3VisionConfig,
    Qwen3VLConfig,
    ResamplerConfig,
    ResamplerModelConfig,
    VisionConfig,
)


def _demo_decoder(*, modality_embedding: bool) -> LanguageConfig:
    """Return the decoder of both variants of the demo model."""
    return LanguageConfig(
        width=192,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        mlp_width=384,
        vocab_size=1024,
        context_length=1024,
        rope_theta=10_000.0,
        qk_norm=True,
        modality_embedding=modality_embedding,
        eos_token_ids=(2,),
    )


RESAMPLER_PRESETS: dict[str, ResamplerModelConfig] = {
    # The model of the design: ViT-L/14 -> 64 x 1024 -> 32 queries -> 32 x 4096, and a 32-layer GQA decoder.
    "qwen3-vl-8b": ResamplerModelConfig(
        vision=VisionConfig(),
        resampler=ResamplerConfig(),
        language=LanguageConfig(eos_token_ids=(2,)),
    ),
    # Patch 16, no resampler: all 196 patches go to the decoder, marked by a modality embedding.
    "qwen3-vl-8b-direct": ResamplerModelConfig(
        vision=VisionConfig(
            patch_size=16,
            width=768,
            num_layers=12,
            num_heads=12,
            mlp_width=3072,
            pool_size=1,
            positions="sincos_2d",
        ),
        resampler=ResamplerConfig(kind="none"),
        language=LanguageConfig(eos_token_ids=(2,), modality_embedding=True),
    ),
    # The same architecture, small enough for tests.
    "tiny": ResamplerModelConfig(
        vision=VisionConfig(width=32, num_layers=2, num_heads=2, mlp_width=64),
        resampler=ResamplerConfig(num_layers=1, num_heads=2, head_dim=16, mlp_width=64),
        language=LanguageConfig(
            width=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            mlp_width=128,
            vocab_size=264,
            context_length=1024,
            qk_norm=True,
            eos_token_ids=(2,),
        ),
    ),
    # The demo model, trained on two CPU cores to answer questions about drawn images.
    "demo": ResamplerModelConfig(
        vision=VisionConfig(width=128, num_layers=4, num_heads=4, mlp_width=512, linear_bias=True),
        resampler=ResamplerConfig(num_layers=2, num_heads=4, head_dim=32, mlp_width=512),
        language=_demo_decoder(modality_embedding=False),
    ),
    # The demo model's direct variant: patch 16, and all 196 patches go to the same decoder.
    "demo-direct": ResamplerModelConfig(
        vision=VisionConfig(
            patch_size=16, width=128, num_layers=4, num_heads=4, mlp_width=512, pool_size=1, linear_bias=True
        ),
        resampler=ResamplerConfig(kind="none"),
        language=_demo_decoder(modality_embedding=True),
    ),
}

# The structure of the released Qwen3-VL models, small enough for tests: three DeepStack levels, images of 16 to 1024
# visual tokens, and the tokens of `byte_tokenizer`.
TINY_QWEN3_VL = Qwen3VLConfig(
    vision=Qwen3VisionConfig(
        width=64,
        num_layers=4,
        num_heads=2,
        mlp_width=96,
        num_positions=64,
        deepstack_layers=(0, 1, 2),
        min_pixels=16_384,
        max_pixels=1_048_576,
    ),
    language=LanguageConfig(
        width=64,
        num_layers=5,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        mlp_width=128,
        vocab_size=264,
        context_length=4096,
        rope_theta=5_000_000.0,
        qk_norm=True,
        mrope_section=(6, 5, 5),
        num_deepstack_levels=3,
        eos_token_ids=(2,),
    ),
)

# The released Qwen3-VL sizes, with their true shapes. They have nothing in common with `qwen3-vl-8b` above.
PRESETS: dict[str, ModelConfig] = {**RESAMPLER_PRESETS, **QWEN3_VL_PRESETS, "tiny-qwen3-vl": TINY_QWEN3_VL}
