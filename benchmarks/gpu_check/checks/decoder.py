"""Compare decoding on the device with float32 on the CPU."""

import asyncio
import random
from collections.abc import Sequence
from hashlib import sha256

import torch
from prometheus_client import REGISTRY
from torch import Tensor

from benchmarks.gpu_check.models import decoder_tensors, varied
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from chassis.cuda_recorder import CudaRecorder
from checkpoint.families import LanguageConfig
from language_service.engine import Finished, Tokens
from language_service.engine.cuda_graphs import RecordedSteps
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.engine.turns import Turns
from language_service.sampling import SamplingOptions
from language_service.scheduling import Chunk, SchedulerConfig
from language_service.scheduling import Sequence as ScheduledSequence

CPU = torch.device("cpu")
_BLOCK_SIZE = 16
_BLOCKS = 64  # enough for all prompts together
_PROMPT_LENGTHS = (1, 5, 16, 17, 40, 90, 33, 64)
_PREFIX = 64
_SHORT = 14
_RUNNING = 8


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report errors of logits, and equal tokens."""
    tensors = varied(decoder_tensors(sizes.small, dtype=torch.float32, device=CPU))
    _check_logits(sizes, tensors, rows)
    _check_replay(sizes, tensors, rows)
    asyncio.run(_check_answers(sizes, tensors, rows))


def make_runner(
    config: LanguageConfig, tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device, num_blocks: int
) -> Runner:
    """Return a decoder with an empty cache, as in serving."""
    decoder = ServingDecoder(config, {name: tensor.to(device, dtype) for name, tensor in tensors.items()})
    cache = PagedCache(config, CacheConfig(num_blocks=num_blocks, block_size=_BLOCK_SIZE), dtype=dtype, device=device)
    cache.choose_attention("auto")
    return Runner(decoder, cache)


def _check_logits(sizes: Sizes, tensors: dict[str, Tensor], rows: RowWriter) -> None:
    """Compare logits of prompt chunks and decoded tokens."""
    expected = _logits(make_runner(sizes.small, tensors, torch.float32, CPU, _BLOCKS))
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 5e-2)):
        found = _logits(make_runner(sizes.small, tensors, dtype, sizes.device, _BLOCKS))
        error = float((found - expected).norm() / expected.norm())
        rows.at_most(f"error of logits, {str(dtype).removeprefix('torch.')}", error, "of their norm", most)


def _logits(runner: Runner) -> Tensor:
    token_ids = _prompt(runner.decoder.config, 50, seed=1)
    steps = [(0, 30), (30, 47), (47, 48), (48, 49), (49, 50)]
    chunks = [_chunk(first, token_ids[first:last]) for first, last in steps]
    return torch.cat([runner.forward([chunk], []).float().cpu() for chunk in chunks])


def _chunk(start: int, token_ids: list[int]) -> Chunk:
    return Chunk(sequence=ScheduledSequence(), start=start, token_ids=token_ids, blocks=[3, 1, 2, 7], samples=True)


@torch.inference_mode()
def _check_replay(sizes: Sizes, tensors: dict[str, Tensor], rows: RowWriter) -> None:
    """Compare replayed CUDA graphs with eager steps."""
    device = sizes.device
    runner = make_runner(sizes.small, tensors, torch.float32, device, _BLOCKS)
    decoder, replayed = runner.decoder, runner.cache
    eager = make_runner(sizes.small, tensors, torch.float32, device, _BLOCKS).cache
    steps = RecordedSteps(decoder, replayed, CudaRecorder(device) if device.type == "cuda" else lambda step: step)
    error, num_replayed = 0.0, 0
    for start in range(40):
        spans = [
            CacheSpan(position, 1, [row * 4 + block for block in range(4)])
            for row, position in enumerate((start, start // 2, start))
        ]
        logits = steps.forward([start, 2, 3], spans)
        num_replayed += logits is not None
        positions, rows_of = torch.tensor([span.start for span in spans], device=device), torch.arange(3, device=device)
        embeddings = decoder.embed(torch.tensor([start, 2, 3], device=device))
        expected = decoder.forward(embeddings, positions, eager.attend(spans), rows_of)
        if logits is not None:
            error = max(error, float((logits - expected).norm() / expected.norm()))
    rows.at_least("steps as CUDA graphs", num_replayed, "of 40", 40)
    rows.at_most("error of replayed steps", error, "of their norm", 1e-3)


async def _check_answers(sizes: Sizes, tensors: dict[str, Tensor], rows: RowWriter) -> None:
    """Compare greedy answers of engines."""
    config, num_tokens = sizes.small, sizes.answer_tokens
    prompts = [_prompt(config, length, seed=length) for length in _PROMPT_LENGTHS]
    expected, _, _ = await _answers(sizes, tensors, CPU, prompts, num_blocks=_BLOCKS, tag="cpu-v1.0.0")
    found, _, _ = await _answers(sizes, tensors, sizes.device, prompts, num_blocks=_BLOCKS, tag="device-v1.0.0")
    total = len(prompts) * num_tokens
    rows.at_least("greedy tokens equal to the CPU's", _num_equal(found, expected), f"of {total}", total)
    # Half of the blocks that the requests need at their end. They grow by more blocks than admission leaves free.
    num_tokens = 3 * _BLOCK_SIZE
    prompts = [_prompt(config, _SHORT, seed=100 + seed) for seed in range(_RUNNING)]
    expected, _, _ = await _answers(
        sizes, tensors, CPU, prompts, num_blocks=_BLOCKS, tag="cpu-v1.1.0", num_tokens=num_tokens
    )
    few = _RUNNING * -(-(_SHORT + num_tokens) // _BLOCK_SIZE) // 2
    found, _, preempted = await _answers(
        sizes, tensors, sizes.device, prompts, num_blocks=few, tag="few-v1.0.0", num_tokens=num_tokens
    )
    total = len(prompts) * num_tokens
    rows.at_least("preemptions with few blocks", preempted, "sequences", 1)
    rows.at_least("greedy tokens with preemption", _num_equal(found, expected), f"of {total}", total)
    await _check_prefixes(sizes, tensors, rows)


async def _check_prefixes(sizes: Sizes, tensors: dict[str, Tensor], rows: RowWriter) -> None:
    prefix = _prompt(sizes.small, _PREFIX, seed=9)
    prompts = [[*prefix, *_prompt(sizes.small, 5, seed=seed)] for seed in range(4)]
    expected, _, _ = await _answers(sizes, tensors, CPU, prompts, num_blocks=_BLOCKS, tag="cpu-v1.0.1")
    found, cached, _ = await _answers(
        sizes, tensors, sizes.device, prompts, num_blocks=_BLOCKS, tag="prefix-v1.0.0", one_by_one=True
    )
    total = len(prompts) * sizes.answer_tokens
    rows.at_least("prompt tokens from the prefix cache", cached, "tokens", (len(prompts) - 1) * _PREFIX)
    rows.at_least("greedy tokens with a reused prefix", _num_equal(found, expected), f"of {total}", total)


async def _answers(
    sizes: Sizes,
    tensors: dict[str, Tensor],
    device: torch.device,
    prompts: Sequence[list[int]],
    *,
    num_blocks: int,
    tag: str,
    num_tokens: int | None = None,
    one_by_one: bool = False,
) -> tuple[list[list[int]], int, int]:
    """Return greedy answers, cached prompt tokens, and preemptions."""
    limits = SchedulerConfig(block_size=_BLOCK_SIZE, max_running=_RUNNING, max_waiting=64, max_step_tokens=64)
    runner = make_runner(sizes.small, tensors, torch.float32, device, num_blocks)
    engine = PagedEngine(runner, limits, tag=tag, model_digest=sha256(tag.encode()).digest(), turns=Turns())
    try:
        asked = [_ask(engine, prompt, num_tokens or sizes.answer_tokens) for prompt in prompts]
        answers = [await each for each in asked] if one_by_one else await asyncio.gather(*asked)
        preempted = REGISTRY.get_sample_value("tandem_language_preemptions_total", {"tag": tag}) or 0
    finally:
        await engine.close()
    return [tokens for tokens, _ in answers], sum(cached for _, cached in answers), int(preempted)


async def _ask(engine: PagedEngine, prompt: list[int], num_tokens: int) -> tuple[list[int], int]:
    generation = engine.open(
        SamplingOptions(max_tokens=num_tokens, ignore_eos=True, temperature=0), salt=b"", priority=0
    )
    generation.add_text(prompt)
    generation.end_prompt(num_tokens)
    tokens: list[int] = []
    cached = 0
    async for event in generation:
        if isinstance(event, Tokens):
            tokens += event.token_ids
        elif isinstance(event, Finished):
            cached = event.usage.num_cached_prompt
    return tokens, cached


def _prompt(config: LanguageConfig, length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, config.vocab_size), k=length)


def _num_equal(found: Sequence[list[int]], expected: Sequence[list[int]]) -> int:
    pairs = zip(found, expected, strict=True)
    return sum(one == other for answers in pairs for one, other in zip(*answers, strict=False))
