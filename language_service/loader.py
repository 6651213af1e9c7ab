"""One language half as the process serves it: its weights, its engine, its identity."""

import asyncio
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from chassis.errors import FailedPrecondition
from checkpoint.config import LanguageConfig
from checkpoint.manifest import TOKENIZER_FILE, read_verified
from checkpoint.store import ModelStore
from checkpoint.weights import LoadedHalf, load_half
from language_service.engine import (
    CacheConfig,
    Engine,
    PagedCache,
    PagedEngine,
    Piece,
    Runner,
    ServingDecoder,
    bytes_per_block,
)
from language_service.memory import available_bytes
from language_service.prompt import PromptLimits
from language_service.sampling import GrammarCompiler
from language_service.scheduling import SchedulerConfig
from tandem.v1 import model_pb2

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedLanguage:
    """A language half that answers."""

    engine: Engine
    grammars: GrammarCompiler
    limits: PromptLimits
    description: model_pb2.ModelInfo

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model; the host adds tag, state and load time."""
        return self.description

    async def close(self) -> None:
        """Stop the engine; weights and cache go with the last reference."""
        self.grammars.close()
        await self.engine.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageLoader:
    """Reads language halves of a model store and makes them ready."""

    store: ModelStore
    dtype: torch.dtype
    device: torch.device
    scheduling: SchedulerConfig
    cache_bytes: int | None  # of each model's KV cache; None sizes it by `cache_fraction`
    cache_fraction: float  # of the memory free once the weights are loaded
    max_images: int
    default_max_tokens: int
    turn: threading.Lock  # held during a forward pass of any of the models

    async def load(self, tag: str) -> HostedLanguage:
        """Read, check and warm the language half of a checkpoint and start its engine.

        Raises:
            TandemError: there is no such checkpoint, it does not hold a language half that works, or its cache would
                have no room.
        """
        half, tokenizer, runner = await asyncio.to_thread(self._read, self.store.folder(tag))
        language = half.config.language
        # Before the engine, whose thread must not be left running by a tokenizer that cannot be read.
        grammars = GrammarCompiler(
            tokenizer.decode(), vocab_size=language.vocab_size, eos_token_ids=language.eos_token_ids
        )
        engine = PagedEngine(runner, self.scheduling, tag=tag, model_digest=half.digest, turn=self.turn)
        limits = PromptLimits(
            vocab_size=language.vocab_size,
            context_length=engine.context_length,
            width=language.width,
            num_visual_tokens=half.config.num_visual_tokens,
            max_images=self.max_images,
            vision_digest=half.manifest.language.vision_digest,
            default_max_tokens=self.default_max_tokens,
        )
        description = self._describe(half, tokenizer, runner, limits)
        return HostedLanguage(engine=engine, grammars=grammars, limits=limits, description=description)

    def _read(self, folder: Path) -> tuple[LoadedHalf, bytes, Runner]:
        half = load_half(folder, "language", dtype=self.dtype, device=self.device)
        config = half.config.language
        decoder = ServingDecoder(config, half.tensors)
        cache = PagedCache(config, self._size_cache(config), dtype=self.dtype, device=self.device)
        runner = Runner(decoder, cache)
        # The first pass plans kernels and takes memory: better now than in somebody's request.
        warmed = runner.forward([Piece(start=0, token_ids=[0], blocks=[0], samples=True)], fresh_blocks=[0])
        if not bool(warmed.isfinite().all()):
            raise FailedPrecondition(
                f"The language half of {folder.name} gives logits that are not finite.", reason="BAD_CHECKPOINT"
            )
        _log.info("decoder ready", tag=folder.name, kernels=type(decoder.kernels).__name__)
        _log.info(
            "kv cache ready",
            tag=folder.name,
            num_blocks=cache.config.num_blocks,
            num_tokens=cache.config.num_tokens,
            num_bytes=cache.kv.nbytes,
        )
        return half, read_verified(folder, half.manifest, TOKENIZER_FILE), runner

    def _size_cache(self, config: LanguageConfig) -> CacheConfig:
        """Return as many blocks as the settings allow, and no more than all running sequences can fill."""
        block_size = self.scheduling.block_size
        block_bytes = bytes_per_block(config, block_size, self.dtype)
        budget = self.cache_bytes
        if budget is None:
            budget = int(self.cache_fraction * available_bytes(self.device))
        useful = self.scheduling.max_running * -(-config.context_length // block_size)
        num_blocks = min(budget // block_bytes, useful)
        if num_blocks < 1:
            raise FailedPrecondition(
                f"A KV cache of {budget} bytes has no room for one block of {block_bytes} bytes.", reason="NO_MEMORY"
            )
        return CacheConfig(num_blocks=num_blocks, block_size=block_size)

    def _describe(
        self, half: LoadedHalf, tokenizer: bytes, runner: Runner, limits: PromptLimits
    ) -> model_pb2.ModelInfo:
        return model_pb2.ModelInfo(
            half_digest=half.digest,
            backend="torch",
            device=str(self.device),
            precision=str(self.dtype).removeprefix("torch."),
            num_parameters=runner.decoder.num_parameters,
            num_weight_bytes=runner.decoder.num_weight_bytes,
            language=model_pb2.LanguageModelInfo(
                vision_digest=limits.vision_digest,
                tokenizer_digest=hashlib.sha256(tokenizer).digest(),
                width=limits.width,
                vocab_size=limits.vocab_size,
                context_length=limits.context_length,
                num_visual_tokens=limits.num_visual_tokens,
                max_images=limits.max_images,
                max_running=self.scheduling.max_running,
                block_size=runner.cache.config.block_size,
                num_blocks=runner.cache.config.num_blocks,
                num_cache_bytes=runner.cache.kv.nbytes,
            ),
        )
