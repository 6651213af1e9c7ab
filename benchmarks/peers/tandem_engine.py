"""Our engine, called directly in its process."""

import asyncio
import os
from pathlib import Path

import torch
import uvloop

from benchmarks.peers.checkpoints import TAG, low_bit_tag
from benchmarks.peers.engines import CACHE_BYTES, THREADS
from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve
from checkpoint.store import ModelStore
from language_service.engine import Engine, EngineConfig, Tokens
from language_service.loader import LanguageLoader
from language_service.sampling import SamplingOptions
from language_service.scheduling import SchedulerConfig


def load(root: Path, weights: str = "") -> tuple[str, Complete]:
    """Load the model with the language service's defaults.

    `weights` names one of `LOW_BIT_FORMS`. Without it they are bfloat16.
    """
    torch.set_num_threads(THREADS)
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    loader = LanguageLoader(
        store=ModelStore(root / "tandem"),
        engine="tandem",
        config=EngineConfig(
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            scheduling=SchedulerConfig(block_size=16, max_running=64, max_waiting=256, max_step_tokens=512),
            cache_bytes=int(os.environ.get("TANDEM_LANGUAGE_KV_CACHE_BYTES", CACHE_BYTES)),
            kernels=os.environ.get("TANDEM_LANGUAGE_KERNELS", "auto"),  # type: ignore[arg-type]
        ),
        max_images=8,
        default_max_tokens=256,
    )
    hosted = runner.run(loader.load(low_bit_tag(weights) if weights else TAG))

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        return runner.run(_complete(hosted.engine, prompts, num_tokens))

    return f"tandem with {hosted.engine.description.backend}, in process", complete


async def _complete(engine: Engine, prompts: Prompts, num_tokens: int) -> Recording:
    recorder = Recorder(len(prompts))

    async def ask(index: int) -> None:
        options = SamplingOptions(max_tokens=num_tokens, ignore_eos=True)
        generation = engine.open(options, salt=b"", priority=0)
        generation.add_text(prompts[index])
        generation.end_prompt(num_tokens)
        async for event in generation:
            if isinstance(event, Tokens):
                recorder.add(index, event.token_ids)

    await asyncio.gather(*(ask(index) for index in range(len(prompts))))
    return recorder.recording


if __name__ == "__main__":
    serve(load)
