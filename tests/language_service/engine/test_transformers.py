"""Compare decoder, cache and engine with `transformers`."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from checkpoint.families import LanguageConfig, ResamplerModelConfig, RopeScaling
from checkpoint.initial import create_checkpoint
from checkpoint.packing import pack
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from checkpoint.weights import load_half
from language_service.engine.paged import PagedEngine
from language_service.model.decoder import Decoder
from tests.language_service.asking import Part, count, feed, read, start
from tests.language_service.recording import RecordingRunner
from tests.language_service.small import make_cache, make_paged_engine

pytestmark = pytest.mark.slow  # two models, several modes, 200 tokens each
NUM_TOKENS = 200
BLOCK_SIZE = 16

SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 80,
    "vocab_size": 264,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,  # far from uniform, so that answers depend on the prompt
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OURS: dict[str, Any] = {
    "width": 48,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 12,
    "mlp_width": 80,
    "vocab_size": 264,
    "context_length": 512,
    "eos_token_ids": (2,),
}


def make_qwen3() -> tuple[PreTrainedModel, LanguageConfig]:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    theirs = Qwen3Config(**SHAPE, tie_word_embeddings=True, rope_parameters=rope, rms_norm_eps=1e-6)
    return Qwen3ForCausalLM(theirs), LanguageConfig(**OURS, qk_norm=True, rope_theta=1e6)


def make_llama() -> tuple[PreTrainedModel, LanguageConfig]:
    """Return a model with the features of Llama 3.1.

    It has an untied head and scaled rotary positions.
    """
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 64, **LLAMA3}
    theirs = LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=rope, rms_norm_eps=1e-5)
    scaling = RopeScaling(kind="llama3", original_context_length=64, **LLAMA3)
    ours = LanguageConfig(**OURS, tied_embeddings=False, rope_theta=5e5, rope_scaling=scaling, norm_eps=1e-5)
    return LlamaForCausalLM(theirs), ours


@dataclass(frozen=True)
class Pair:
    """One model twice: by transformers, and ours."""

    theirs: Any  # a PreTrainedModel; its methods have no types
    ours: Decoder

    def embed(self, parts: Sequence[Part]) -> Tensor:
        embed_tokens = self.theirs.get_input_embeddings()
        return torch.cat(
            [part.float() if isinstance(part, Tensor) else embed_tokens(torch.tensor(part)) for part in parts]
        )

    @torch.inference_mode()
    def reference(self, parts: Sequence[Part]) -> tuple[list[int], Tensor]:
        """Return greedy answer and logits [T, V] of transformers.

        The logits are over prompt and answer.
        """
        prompt_TD = self.embed(parts)
        answer = self.theirs.generate(
            inputs_embeds=prompt_TD[None],
            attention_mask=torch.ones(1, len(prompt_TD)),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )[0].tolist()
        whole_TD = torch.cat([prompt_TD, self.embed([answer])])
        return answer, self.theirs(inputs_embeds=whole_TD[None]).logits[0]


@pytest.fixture(scope="module", params=[make_qwen3, make_llama], ids=["qwen3", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Write a model with transformers and load it as ours."""
    torch.manual_seed(0)
    theirs, language = request.param()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape)  # all ones would hide a missing norm
    theirs.generation_config.eos_token_id = None
    folder = tmp_path_factory.mktemp(request.param.__name__)
    theirs.eval().save_pretrained(folder / "theirs")
    config = ResamplerModelConfig(**{**RESAMPLER_PRESETS["tiny"].model_dump(), "language": language})
    tag = "theirs-v1.0.0"
    _pack(folder, config, tag)
    half = load_half(ModelStore(folder / "models").folder(tag), "language", dtype=torch.float32)
    ours = Decoder(half.config.language)
    ours.load_state_dict(half.tensors)
    return Pair(theirs, ours.requires_grad_(False).eval())


def _pack(folder: Path, config: ResamplerModelConfig, tag: str) -> None:
    """Pack the weights of transformers into our store.

    The vision half is random.
    """
    create_checkpoint(folder / "random", tag, config)
    random = load_file(folder / "random" / tag / f"{tag}.safetensors")
    vision = {name: tensor for name, tensor in random.items() if not name.startswith(("language_model.", "lm_head."))}
    save_file(vision, folder / "vision.safetensors")
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    pack(
        [folder / "theirs" / "model.safetensors", folder / "vision.safetensors"],
        folder / "models",
        tag,
        config=folder / "config.json",
        tokenizer=folder / "random" / tag / "tokenizer.json",
    )


PROMPTS: dict[str, list[Part]] = {
    "text": [[5, 17, 99, 200, 31, 8, 64, 3, 77, 150, 151, 12, 13, 14, 15, 16, 201, 202, 203]],
    "images": [
        [5, 17, 99],
        torch.randn(20, 48, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16),
        [31, 8],
        torch.randn(20, 48, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16),
        [77],
    ],
}
# Equal requests at the same time, tokens per step, blocks of the cache, whether prefixes are reused.
CASES: dict[str, tuple[int, int, int, bool]] = {
    "whole prompt at once": (1, 256, 32, False),
    "prompt in chunks": (1, 7, 32, False),
    "together": (3, 64, 64, False),
    "prefixes reused": (3, 64, 64, True),
    "preempted": (3, 64, 30, False),
    "preempted, prefixes reused": (3, 64, 20, True),
}


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS.keys())
async def test_logits_and_tokens_are_those_of_transformers(pair: Pair, parts: list[Part]) -> None:
    """Equal requests have equal logits at each position."""
    answer, logits_TV = pair.reference(parts)
    for name, (num_requests, max_step_tokens, num_blocks, reuse_prefixes) in CASES.items():
        runner = RecordingRunner(pair.ours, make_cache(num_blocks, BLOCK_SIZE, pair.ours.config))
        engine = make_paged_engine(
            runner, max_running=4, max_waiting=8, max_step_tokens=max_step_tokens, reuse_prefixes=reuse_prefixes
        )
        preempted, found = count("preemptions"), count("tokens", kind="found")
        answers = await asyncio.gather(*(_ask(engine, parts) for _ in range(num_requests)))
        await engine.close()
        assert (count("preemptions") > preempted) == ("preempted" in name), name
        assert (count("tokens", kind="found") > found) == reuse_prefixes, name
        assert answers == [answer] * num_requests, name
        assert len(runner.rows) >= num_requests * NUM_TOKENS
        for row in runner.rows:
            torch.testing.assert_close(row.logits_V, logits_TV[row.index], rtol=0, atol=1e-4, msg=name)


async def _ask(engine: PagedEngine, parts: Sequence[Part]) -> list[int]:
    generation = start(engine, ignore_eos=True)
    feed(generation, parts)
    generation.end_prompt(NUM_TOKENS)
    return (await read(generation))[0]
