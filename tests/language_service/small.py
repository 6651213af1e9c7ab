"""A small decoder with varied answers, and its cache."""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.engine.kv_cache import CacheConfig, PagedCache
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.engine.turns import Turns
from language_service.model.decoder import Decoder
from language_service.model.positions import Grid
from language_service.scheduling.scheduler import SchedulerConfig
from language_service.scheduling.sequence import Chunk, Sequence

CPU = torch.device("cpu")
CONFIG = LanguageConfig(
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=48,
    vocab_size=97,
    context_length=256,
    rope_theta=10_000.0,
    qk_norm=True,
    modality_embedding=True,
    eos_token_ids=(2,),
)
# Heads and inputs of projections as all native kernels need them. Its widths fill no whole number of panels.
WIDE = CONFIG.model_copy(update={"head_dim": 32, "mlp_width": 96})
# As Qwen3-VL: positions of three parts, and levels after all layers but the last.
GRIDS = WIDE.model_copy(
    update={"num_layers": 4, "modality_embedding": False, "mrope_section": (6, 5, 5), "num_deepstack_levels": 3}
)


@dataclass(frozen=True, slots=True, eq=False)
class GridImage:
    """Visual tokens with a grid and levels."""

    tokens_NX: Tensor  # of each token the embedding, then its levels
    grid: Grid

    def __len__(self) -> int:
        return len(self.tokens_NX)


def variants_of(config: LanguageConfig) -> dict[str, LanguageConfig]:
    """Return variants with features of other model families."""
    return {
        "all of ours": config,
        "llama: no norm of heads, a head of its own": config.model_copy(
            update={"qk_norm": False, "tied_embeddings": False, "modality_embedding": False}
        ),
        "qwen2: biases": config.model_copy(update={"qk_norm": False, "attention_bias": True}),
        "one key-value head": config.model_copy(update={"num_kv_heads": 1}),
        "a key-value head for each query head": config.model_copy(update={"num_kv_heads": 4}),
    }


def make_decoder(config: LanguageConfig) -> Decoder:
    """Return a decoder whose answers depend on the whole prompt."""
    torch.manual_seed(0)
    decoder = Decoder(config).requires_grad_(False).eval()
    for name, parameter in decoder.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.add_(0.2 * torch.randn(parameter.shape))  # not the identity, so that a missing norm shows
        else:
            parameter.mul_(10)  # far from uniform
    return decoder


def make_cache(num_blocks: int, block_size: int = 4, config: LanguageConfig = CONFIG) -> PagedCache:
    """Return an empty cache in float32."""
    shape = CacheConfig(num_blocks=num_blocks, block_size=block_size)
    return PagedCache(config, shape, dtype=torch.float32, device=CPU)


def make_paged_engine(
    runner: Runner, *, tag: str = "test-v1.0.0", turns: Turns | None = None, **limits: Any
) -> PagedEngine:
    """Return an engine. `limits` replace those of its scheduler."""
    limits = {"max_running": 8, "max_waiting": 64, "max_step_tokens": 32, **limits}
    config = SchedulerConfig(block_size=runner.cache.config.block_size, **limits)
    return PagedEngine(runner, config, tag=tag, model_digest=bytes(32), turns=turns or Turns())


def make_image(seed: int, num_tokens: int = 5) -> Tensor:
    """Return visual tokens [num_tokens, D] in bfloat16, as in messages."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, CONFIG.width, generator=generator).to(torch.bfloat16)


def make_grid_image(seed: int, rows: int, columns: int, config: LanguageConfig = GRIDS) -> GridImage:
    """Return an image in bfloat16 for a model with grids."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows * columns, (1 + config.num_deepstack_levels) * config.width)
    return GridImage(torch.randn(shape, generator=generator).to(torch.bfloat16), Grid(rows, columns))


def make_chunk(
    start: int,
    token_ids: AbstractSequence[int],
    blocks: AbstractSequence[int],
    *,
    samples: bool = True,
    num_drafts: int = 0,
) -> Chunk:
    """Return a chunk of a sequence that no scheduler knows."""
    return Chunk(
        sequence=Sequence(),
        start=start,
        token_ids=list(token_ids),
        blocks=list(blocks),
        samples=samples,
        num_drafts=num_drafts,
    )
