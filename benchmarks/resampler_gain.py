"""Decoder cost of an image: resampled tokens or all patches.

A decoder of 0.6 B parameters (Qwen3-0.6B's shape, random weights, bfloat16) runs in our engine, without gRPC. Each
request has one image, as 32 visual tokens, 196 patches or 256 patches. Four requests run at once, in interleaved
rounds. Answers have one token, which measures the prefill alone, or 32 tokens.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.report import Report, median_ratio, parse_arguments
from checkpoint.families import LanguageConfig
from language_service.engine import Finished
from language_service.engine.kv_cache import CacheConfig, PagedCache, bytes_per_block
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.engine.turns import Turns
from language_service.model import Decoder
from language_service.sampling import SamplingOptions
from language_service.scheduling import SchedulerConfig

DECODER = LanguageConfig(
    width=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_width=3072,
    vocab_size=151936,
    context_length=1024,
    qk_norm=True,
    eos_token_ids=(2,),
)
# Visual tokens per image -> description
KINDS = {32: "32 resampled", 196: "196 patches of 16 pixels", 256: "256 patches of 14 pixels"}
ANSWERS = (1, 32)  # length of the answers, tokens
TEXT_TOKENS = 24  # length of the question, half of it before the image
AT_ONCE = 4
BLOCK_SIZE = 16
ROUNDS = 5
AIM = 3.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one kind: concurrent requests, and one alone."""

    requests_per_s: float
    prefill_s: float  # of the single request


def build_engine() -> PagedEngine:
    """Return an engine with random weights and a sufficient cache."""
    dtype, device = torch.bfloat16, torch.device("cpu")
    decoder = Decoder(DECODER).to(dtype).requires_grad_(False).eval()
    blocks_each = -(-(TEXT_TOKENS + max(KINDS) + max(ANSWERS)) // BLOCK_SIZE)
    cache = PagedCache(DECODER, CacheConfig(num_blocks=AT_ONCE * blocks_each), dtype=dtype, device=device)
    config = SchedulerConfig(block_size=BLOCK_SIZE, max_running=AT_ONCE, max_waiting=AT_ONCE, max_step_tokens=512)
    return PagedEngine(Runner(decoder, cache), config, tag="benchmark", model_digest=bytes(32), turns=Turns())


async def answer(engine: PagedEngine, num_visual: int, num_tokens: int) -> Finished:
    """Ask a random question about a random image.

    So no part of the prompt is in the prefix cache.
    """
    words = torch.randint(6, DECODER.vocab_size, (TEXT_TOKENS,)).tolist()
    image_ND = torch.randn(num_visual, DECODER.width).mul_(0.02).to(torch.bfloat16)
    generation = engine.open(SamplingOptions(ignore_eos=True), salt=b"", priority=0)
    generation.add_text(words[: TEXT_TOKENS // 2])
    generation.add_image(image_ND, os.urandom(32))
    generation.add_text(words[TEXT_TOKENS // 2 :])
    generation.end_prompt(num_tokens)
    async for event in generation:
        if isinstance(event, Finished):
            return event
    raise RuntimeError("the engine ended the answer without a Finished event")


async def run_round(engine: PagedEngine, num_visual: int, num_tokens: int) -> Sample:
    """Run one round of one kind."""
    alone = await answer(engine, num_visual, 1)
    start = time.perf_counter()
    await asyncio.gather(*(answer(engine, num_visual, num_tokens) for _ in range(AT_ONCE)))
    return Sample(AT_ONCE / (time.perf_counter() - start), alone.timings.prefill_ms / 1000)


async def measure(answers: Sequence[int], rounds: int) -> dict[tuple[int, int], list[Sample]]:
    """Return samples by visual tokens and answer tokens.

    All of them take turns, so a change of the machine's speed affects each.
    """
    samples: dict[tuple[int, int], list[Sample]] = {(kind, tokens): [] for tokens in answers for kind in KINDS}
    engine = build_engine()
    for kind in KINDS:
        await answer(engine, kind, 2)  # warm up: the first call of a shape chooses kernels
    with Progress() as progress:
        task = progress.add_task("answering", total=rounds * len(samples))
        for _ in range(rounds):
            for (kind, tokens), taken in samples.items():
                taken.append(await run_round(engine, kind, tokens))
                progress.advance(task)
    await engine.close()
    return samples


def fill(report: Report, samples: dict[tuple[int, int], list[Sample]], answers: Sequence[int]) -> None:
    """Add the figures to the report."""
    position_bytes = bytes_per_block(DECODER, BLOCK_SIZE, torch.bfloat16) / BLOCK_SIZE
    for kind, name in KINDS.items():
        report.add(f"{name}: KV cache per image", kind * position_bytes / 2**20, "MiB")
        alone = [sample.prefill_s for tokens in answers for sample in samples[kind, tokens]]
        report.add(f"{name}: prefill time", 1000 * statistics.median(alone), "ms")
        for tokens in answers:
            rate = statistics.median(sample.requests_per_s for sample in samples[kind, tokens])
            report.add(f"{name}: {AT_ONCE} at once, {tokens}-token answers", rate, "requests/s")
    for kind in list(KINDS)[1:]:
        few = [sample.prefill_s for tokens in answers for sample in samples[32, tokens]]
        many = [sample.prefill_s for tokens in answers for sample in samples[kind, tokens]]
        report.add(f"32 against {kind}: prefill speed", median_ratio(many, few), "x")
        for tokens in answers:
            fast = [sample.requests_per_s for sample in samples[32, tokens]]
            slow = [sample.requests_per_s for sample in samples[kind, tokens]]
            gain = median_ratio(fast, slow)
            aim = f"at least {AIM:g}"
            report.add(f"32 against {kind}: requests/s, {tokens}-token answers", gain, "x", aim=aim, met=gain >= AIM)
        report.add(f"{kind} against 32: KV cache per image", kind / 32, "x")
    for (kind, tokens), taken in samples.items():
        report.details[f"{kind} visual tokens, answers of {tokens}"] = {
            "requests_per_s": [sample.requests_per_s for sample in taken],
            "prefill_s": [sample.prefill_s for sample in taken],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments("Compare resampled visual tokens with all patches, on the same decoder.", arguments)
    answers = ANSWERS[:1] if options.quick else ANSWERS
    torch.manual_seed(0)
    samples = asyncio.run(measure(answers, ROUNDS))
    report = Report("resampler_gain", "Decoder cost of an image by its visual tokens: 0.6 B parameters, bfloat16")
    fill(report, samples, answers)

    def plot(axes: Axes) -> None:
        for offset, tokens in enumerate(answers):
            rates = [statistics.median(sample.requests_per_s for sample in samples[kind, tokens]) for kind in KINDS]
            places = [index + 0.4 * offset for index in range(len(KINDS))]
            axes.bar(places, rates, width=0.38, label=f"{tokens}-token answers")
        axes.set(ylabel=f"requests/s, {AT_ONCE} at once", xticks=range(len(KINDS)), xticklabels=list(KINDS.values()))
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
