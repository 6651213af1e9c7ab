"""Measure decode and prefill of decoders beside the machine's limits."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.gpu_check.limits import matmul_peak, median_s, memory_bandwidth
from benchmarks.gpu_check.models import decoder_tensors
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from checkpoint.families import LanguageConfig
from language_service.engine import Tokens
from language_service.engine.kv_cache import CacheConfig, PagedCache, bytes_per_block
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.engine.turns import Turns
from language_service.sampling import SamplingOptions
from language_service.scheduling import Chunk, SchedulerConfig
from language_service.scheduling import Sequence as ScheduledSequence

_BLOCK_SIZE = 16
_PRODUCTS = ("nvjet", "gemm", "gemv", "cutlass", "xmma")  # in names of kernels
_DECODE_AIM, _PREFILL_AIM = 80, 60  # percent of the limit


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report tokens a second and shares of the limits."""
    bandwidth = memory_bandwidth(sizes.device, sizes.bandwidth_bytes)
    peak = matmul_peak(sizes.device, sizes.dtype, sizes.matmul_side)
    rows.add("memory bandwidth", bandwidth / 1e9, "GB/s")
    rows.add("matrix peak", peak / 1e12, "TFLOP/s")
    for name, config in sizes.decoders.items():
        try:
            _measure(sizes, rows, name, config, bandwidth, peak)
        except torch.OutOfMemoryError as error:  # a smaller card still measures the other shape
            rows.absent(f"{name}, the rest", f"out of memory: {str(error)[:200]}")
        if sizes.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(sizes: Sizes, rows: RowWriter, name: str, config: LanguageConfig, bandwidth: float, peak: float) -> None:
    runner = _make_runner(sizes, config)
    facts = runner.description
    rows.add(f"{name}, weights", facts.num_weight_bytes / 2**30, "GiB", note=f"{facts.kernels}, {facts.num_parameters}")
    rows.absent(f"{name}, decode attention", runner.cache.decode_attention.name)
    for count in sizes.num_sequences:
        _measure_decode(sizes, rows, name, runner, count, bandwidth)
    for num_tokens in sizes.prompt_tokens:
        _measure_prefill(sizes, rows, name, runner, num_tokens, peak)
    for count in sizes.num_sequences:
        rate = asyncio.run(_engine_rate(sizes, runner, count, f"{name.lower().replace('.', '')}-v1.0.{count}"))
        rows.add(f"{name}, {count} sequences, whole engine", rate, "tokens/s", note="with scheduler and sampler")


def _make_runner(sizes: Sizes, config: LanguageConfig) -> Runner:
    """Return a decoder and a cache with content."""
    tensors = decoder_tensors(config, dtype=sizes.dtype, device=sizes.device)
    decoder = ServingDecoder(config, tensors)
    per_sequence = -(-(sizes.context + sizes.steps + 1) // _BLOCK_SIZE)
    per_prompt = -(-max(sizes.prompt_tokens) // _BLOCK_SIZE)
    shape = CacheConfig(num_blocks=max(per_sequence * max(sizes.num_sequences), per_prompt), block_size=_BLOCK_SIZE)
    cache = PagedCache(config, shape, dtype=sizes.dtype, device=sizes.device)
    for layer in cache.kv:  # one by one, because random numbers take memory of their own
        layer.normal_()
    cache.choose_attention("auto")
    return Runner(decoder, cache)


def _measure_decode(sizes: Sizes, rows: RowWriter, name: str, runner: Runner, count: int, bandwidth: float) -> None:
    """Measure steps of `count` sequences with a context of `sizes.context`."""
    config = runner.decoder.config
    width = -(-(sizes.context + 1) // _BLOCK_SIZE)
    blocks = random.Random(0).sample(range(runner.cache.config.num_blocks), count * width)
    chunks = [_chunk(sizes.context, [7 + row], blocks[row * width : (row + 1) * width]) for row in range(count)]

    def step() -> Tensor:
        return runner.forward(chunks, []).argmax(-1).cpu()  # as a sampler, which waits for the tokens

    seconds = median_s(step, sizes.device, sizes.steps)
    weights = runner.description.num_weight_bytes
    if not config.tied_embeddings:
        weights -= config.vocab_size * config.width * sizes.dtype.itemsize  # only a few rows are read
    cached = count * (sizes.context + 1) * bytes_per_block(config, 1, sizes.dtype)
    share = 100 * (weights + cached) / bandwidth / seconds
    title = f"{name}, {count} sequences of {sizes.context}"
    rows.add(f"{title}, decode", count / seconds, "tokens/s", note=f"{1000 * seconds:.2f} ms a step")
    rows.at_least(f"{title}, share of the bandwidth's limit", share, "%", _DECODE_AIM)
    if sizes.device.type == "cuda":
        _profile(sizes, rows, title, step)


def _profile(sizes: Sizes, rows: RowWriter, title: str, step: Callable[[], Tensor]) -> None:
    """Report the time in kernels and in matrix products."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize(sizes.device)
        times_us = {event.key: float(event.self_device_time_total) for event in profile.key_averages()}
    except RuntimeError as problem:  # some machines do not let programs read the counters of a GPU
        rows.absent(f"{title}, time in kernels", f"cannot be read here: {str(problem)[:200]}")
        return
    total_us = sum(times_us.values())
    rows.add(f"{title}, time in kernels", total_us / 1000, "ms")
    rows.add(f"{title}, share of matrix products", 100 * products_us(times_us) / max(total_us, 1e-9), "% of it")


def products_us(times_us: Mapping[str, float]) -> float:
    """Return the time of the kernels that multiply matrices.

    Args:
        times_us: by kernel. cuBLAS names its kernels after the instructions or the product.
    """
    return sum(time_us for name, time_us in times_us.items() if any(part in name.lower() for part in _PRODUCTS))


def _measure_prefill(sizes: Sizes, rows: RowWriter, name: str, runner: Runner, num_tokens: int, peak: float) -> None:
    """Measure one step that computes a prompt of `num_tokens`."""
    config = runner.decoder.config
    blocks = list(range(-(-num_tokens // _BLOCK_SIZE)))
    chunk = _chunk(0, random.Random(1).choices(range(config.vocab_size), k=num_tokens), blocks)
    seconds = median_s(lambda: runner.forward([chunk], []).argmax(-1).cpu(), sizes.device, max(2, sizes.steps // 4))
    in_layers = runner.decoder.num_parameters - config.vocab_size * config.width * (2 - config.tied_embeddings)
    attention = 2 * num_tokens**2 * config.num_heads * config.head_dim * config.num_layers  # half of the pairs
    flop = 2 * in_layers * num_tokens + attention
    title = f"{name}, prefill of {num_tokens}"
    rows.add(title, num_tokens / seconds, "tokens/s", note=f"{1000 * seconds:.2f} ms")
    rows.at_least(f"{title}, share of the matrix peak", 100 * flop / peak / seconds, "%", _PREFILL_AIM)


def _chunk(start: int, token_ids: list[int], blocks: list[int]) -> Chunk:
    return Chunk(sequence=ScheduledSequence(), start=start, token_ids=token_ids, blocks=blocks, samples=True)


async def _engine_rate(sizes: Sizes, runner: Runner, count: int, tag: str) -> float:
    """Return tokens/s of the whole engine while all sequences decode."""
    config = SchedulerConfig(
        block_size=_BLOCK_SIZE,
        max_running=count,
        max_waiting=2 * count,
        max_step_tokens=2048 + count,
        reuse_prefixes=False,
    )
    engine = PagedEngine(runner, config, tag=tag, model_digest=bytes(32), turns=Turns())
    generator = random.Random(count)
    vocabulary = range(3, runner.decoder.config.vocab_size)
    times: list[list[float]] = [[] for _ in range(count)]

    async def ask(row: int) -> None:
        num_tokens = sizes.steps + 1
        options = SamplingOptions(max_tokens=num_tokens, ignore_eos=True)
        generation = engine.open(options, salt=b"", priority=0)
        generation.add_text(generator.choices(vocabulary, k=sizes.context // 4))
        generation.end_prompt(num_tokens)
        async for event in generation:
            if isinstance(event, Tokens):
                times[row] += [time.perf_counter()] * len(event.token_ids)

    try:
        for _ in range(2):  # the first round records the CUDA graphs
            for each in times:
                each.clear()
            await asyncio.gather(*(ask(row) for row in range(count)))
    finally:
        await engine.close()
    start_s, end_s = max(each[0] for each in times), max(each[-1] for each in times)
    return sum(at > start_s for each in times for at in each) / (end_s - start_s)
