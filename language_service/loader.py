"""Load the language half of a checkpoint and start it."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoint.manifest import TOKENIZER_FILE, read_verified
from checkpoint.store import ModelStore
from checkpoint.weights import LoadedHalf, load_half
from language_service.engine import Engine, EngineConfig, EngineName, Follower, join_engine, open_engine
from language_service.prompt import PromptLimits
from language_service.sampling import GrammarCompiler
from tandem.v1 import model_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedLanguage:
    """A language half that is ready to answer."""

    engine: Engine
    grammars: GrammarCompiler
    limits: PromptLimits
    description: model_pb2.ModelInfo

    def info(self) -> model_pb2.ModelInfo:
        """Describe the model and its load now.

        The host adds tag, state and load time.
        """
        stats = self.engine.stats()
        load = model_pb2.EngineLoad(
            running=stats.num_running,
            waiting=stats.num_waiting,
            used_blocks=stats.num_used_blocks,
            kept_blocks=stats.num_evictable_blocks,
            num_blocks=stats.num_blocks,
        )
        info = model_pb2.ModelInfo()
        info.CopyFrom(self.description)
        info.language.load.CopyFrom(load)
        return info

    async def is_ready(self) -> bool:
        """Return whether the engine takes requests now."""
        return self.engine.is_ready

    async def close(self) -> None:
        """Stop the engine.

        Weights and cache are freed with the last reference to it.
        """
        await asyncio.to_thread(self.grammars.close)
        await self.engine.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageLoader:
    """Loads language halves from a model store."""

    store: ModelStore
    engine: EngineName
    config: EngineConfig
    max_images: int  # in one prompt
    default_max_tokens: int  # of an answer without a limit of its own

    async def load(self, tag: str) -> HostedLanguage:
        """Load and verify a language half, then start its engine.

        Raises:
            TandemError: the checkpoint does not exist, has no valid language half, or its KV cache does not fit into
                memory.
        """
        half, tokenizer = await asyncio.to_thread(self._read, self.store.folder(tag))
        tokenizer_json = tokenizer.decode()  # may fail, so before the engine starts a thread
        engine = await open_engine(self.engine, half, self.config, tag=tag, tokenizer_json=tokenizer_json)
        language = half.config.language
        limits = PromptLimits(
            vocab_size=language.vocab_size,
            context_length=engine.context_length,
            width=language.width,
            num_levels=half.config.num_levels,
            num_visual_tokens=half.config.num_visual_tokens,
            max_images=self.max_images,
            vision_digest=half.manifest.language.vision_digest,
            default_max_tokens=self.default_max_tokens,
        )
        return HostedLanguage(
            engine=engine,
            grammars=GrammarCompiler(
                tokenizer_json, vocab_size=language.vocab_size, eos_token_ids=language.eos_token_ids
            ),
            limits=limits,
            description=self._describe(half, tokenizer, engine, limits),
        )

    async def follow(self, tag: str) -> Follower:
        """Load and verify a language half, then join its leader.

        Raises:
            TandemError: the checkpoint does not exist, has no valid language half, or vLLM cannot join.
        """
        half, tokenizer = await asyncio.to_thread(self._read, self.store.folder(tag))
        return await join_engine(half, self.config, tag=tag, tokenizer_json=tokenizer.decode())

    def _read(self, folder: Path) -> tuple[LoadedHalf, bytes]:
        """Return the half and its tokenizer file."""
        # vLLM reads the weights from a file.
        device = torch.device("cpu") if self.engine == "vllm" else self.config.device
        half = load_half(folder, "language", dtype=self.config.dtype, device=device)
        return half, read_verified(folder, half.manifest, TOKENIZER_FILE)

    def _describe(
        self, half: LoadedHalf, tokenizer: bytes, engine: Engine, limits: PromptLimits
    ) -> model_pb2.ModelInfo:
        facts = engine.description
        return model_pb2.ModelInfo(
            half_digest=half.digest,
            backend=facts.backend,
            device=str(self.config.device),
            precision=str(half.config.language.quantization or self.config.dtype).removeprefix("torch."),
            num_parameters=facts.num_parameters,
            num_weight_bytes=facts.num_weight_bytes,
            language=model_pb2.LanguageModelInfo(
                vision_digest=limits.vision_digest,
                tokenizer_digest=hashlib.sha256(tokenizer).digest(),
                width=limits.width,
                vocab_size=limits.vocab_size,
                context_length=limits.context_length,
                num_visual_tokens=limits.num_visual_tokens or 0,
                num_levels=limits.num_levels,
                max_images=limits.max_images,
                max_running=self.config.scheduling.max_running,
                block_size=facts.block_size,
                num_blocks=facts.num_blocks,
                num_cache_bytes=facts.num_cache_bytes,
                takes_whole_prompts=True,
            ),
        )
