"""Time the first token of questions with an image.

Questions go through gateway, vision service and language service. If the packages of gRPC are not there, or the
processes do not start, the parts run in this process and the rows say so.
"""

import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_check.models import DeviceTensors, decoder_tensors
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from checkpoint.saving import save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import byte_tokenizer
from language_service.engine import Tokens
from language_service.engine.kv_cache import CacheConfig, PagedCache, bytes_per_block
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.engine.turns import Turns
from language_service.sampling import SamplingOptions
from language_service.scheduling import SchedulerConfig
from processing import open_image_processor
from vision_service.backends.torch_backend import TorchBackend

TAG = "first-token-v1.0.0"
_AIM_MS = 300
_QUESTION = "What is in this image?"
_KV_TOKENS = 16_384

Ask = Callable[[bytes], Awaitable[float]]  # asks about an image, returns the time to the first token in seconds


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report percentiles of the time to first token."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run_stack(sizes, rows, Path(folder))
        except Exception as problem:  # the parts in this process still tell most
            rows.add("whole stack", aim="runs", met=False, note=f"{type(problem).__name__}: {str(problem)[:500]}")
            asyncio.run(run_in_process(sizes, rows))


def photograph(seed: int) -> bytes:
    """Return a JPEG of 640 x 480 pixels with noise."""
    ramp = np.linspace(0, 200, 640)[None, :, None] + np.zeros((480, 1, 3))
    noise = np.random.default_rng(seed).normal(0, 12, ramp.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


async def _ask_all(sizes: Sizes, ask: Ask) -> list[float]:
    """Ask with all callers at once. Returns the times.

    Every question has an image of its own, so that no cache helps. The first quarter compiles kernels and records CUDA
    graphs, and is asked once more than counted.
    """
    num_warm = max(1, sizes.questions // 4)
    total = num_warm + sizes.questions
    images = [[photograph(total * number + index) for index in range(total)] for number in range(sizes.callers)]

    async def caller(own: list[bytes]) -> list[float]:
        return [await ask(image) for image in own][num_warm:]

    times = await asyncio.gather(*(caller(own) for own in images))
    return [time_s for each in times for time_s in each]


def _report(sizes: Sizes, rows: RowWriter, where: str, times_s: list[float]) -> None:
    for percent in (50, 95):
        rows.add(f"{where}, first token, p{percent}", 1000 * float(np.percentile(times_s, percent)), "ms")
    title = f"{where}, first token, p99 at {sizes.callers} callers"
    rows.at_most(title, 1000 * float(np.percentile(times_s, 99)), "ms", _AIM_MS, note=f"{len(times_s)} questions")


def _run_stack(sizes: Sizes, rows: RowWriter, models: Path) -> None:
    """Write the model, start the three processes and ask them."""
    from tandem.stack import Stack, StackConfig

    started_s = time.perf_counter()
    tensors = DeviceTensors(sizes.model, dtype=torch.bfloat16, device=sizes.device)
    with ModelStore(models).create(TAG) as folder:
        save(
            folder, sizes.model, tensors, TAG, tokenizer_json=byte_tokenizer().to_str(), dtype=torch.bfloat16, shards=2
        )
    rows.add("checkpoint written", time.perf_counter() - started_s, "s")
    if sizes.device.type == "cuda":
        torch.cuda.empty_cache()
    config = StackConfig(
        models=models,
        release=TAG,
        precision="bfloat16" if sizes.dtype == torch.bfloat16 else "float32",
        device=str(sizes.device),
        drain_s=1.0,
        ready_timeout_s=120.0,
        # Both stages share the card, so the cache takes no fraction of it.
        language_flags=["--kv-cache-bytes", str(_cache_bytes(sizes))],
    )
    started_s = time.perf_counter()
    with Stack(config, lambda service, line: print(service, line, flush=True)) as stack:
        rows.add("stack ready", time.perf_counter() - started_s, "s")
        if sizes.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(sizes.device)
            rows.add("GPU memory in use, by all processes", (total - free) / 2**30, "GiB")
        asyncio.run(_ask_stack(sizes, rows, stack.address))


def _cache_bytes(sizes: Sizes) -> int:
    return _KV_TOKENS * bytes_per_block(sizes.model.language, 1, sizes.dtype)


async def _ask_stack(sizes: Sizes, rows: RowWriter, address: str) -> None:
    from tandem.client import AsyncClient

    # Random weights choose any of the model's tokens, but the tokenizer has text for bytes only.
    letter = byte_tokenizer().token_to_id("a")
    assert letter is not None
    stages: dict[str, list[float]] = {"prepare": [], "vision": [], "queue": [], "prefill": []}
    async with AsyncClient(address) as client:

        async def ask(image: bytes) -> float:
            started_s = time.perf_counter()
            stream = client.generate(
                _QUESTION,
                images=[image],
                max_tokens=sizes.question_tokens,
                ignore_eos=True,
                logit_bias={letter: 100.0},
            )
            times_s = [time.perf_counter() async for _ in stream]  # to the end, as a user would
            for stage, samples in stages.items():
                samples.append(getattr(stream.final.timings, f"{stage}_ms"))
            return times_s[0] - started_s

        times_s = await _ask_all(sizes, ask)
    _report(sizes, rows, "whole stack", times_s)
    for stage, samples in stages.items():
        rows.add(f"whole stack, {stage}, median", statistics.median(samples), "ms")


async def run_in_process(sizes: Sizes, rows: RowWriter) -> None:
    """Ask vision half and engine in this process.

    There is no gRPC, no batcher and no gateway.
    """
    device, dtype = sizes.device, sizes.dtype
    config = sizes.model.language
    processor = open_image_processor(sizes.model)
    vision = DeviceTensors(sizes.model, dtype=dtype, device=device).of("vision")
    backend = TorchBackend(sizes.model, vision, dtype=dtype, device=device)
    decoder = ServingDecoder(config, decoder_tensors(config, dtype=dtype, device=device))
    cache = PagedCache(config, CacheConfig(num_blocks=_KV_TOKENS // 16), dtype=dtype, device=device)
    cache.choose_attention("auto")
    limits = SchedulerConfig(block_size=16, max_running=64, max_waiting=256, max_step_tokens=512)
    engine = PagedEngine(Runner(decoder, cache), limits, tag=TAG, model_digest=bytes(32), turns=Turns())
    question = byte_tokenizer().encode(_QUESTION).ids

    def encode(image: bytes) -> torch.Tensor:
        pixels = processor.to_pixels(Image.open(io.BytesIO(image)).convert("RGB"))
        [tokens] = backend.encode([pixels])
        return torch.from_numpy(tokens).view(torch.bfloat16)

    with ThreadPoolExecutor(1) as encoder:

        async def ask(image: bytes) -> float:
            started_s = time.perf_counter()
            tokens_ND = await asyncio.get_running_loop().run_in_executor(encoder, encode, image)
            options = SamplingOptions(max_tokens=sizes.question_tokens, ignore_eos=True)
            generation = engine.open(options, salt=b"", priority=0)
            generation.add_image(tokens_ND, sha256(image).digest())
            generation.add_text(question)
            generation.end_prompt(sizes.question_tokens)
            times_s = [time.perf_counter() async for event in generation if isinstance(event, Tokens)]
            return times_s[0] - started_s

        try:
            _report(sizes, rows, "in one process, no gRPC", await _ask_all(sizes, ask))
        finally:
            await engine.close()
