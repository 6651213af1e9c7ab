"""`transformers` with its continuous batching and paged cache."""

from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.engines import THREADS
from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve

_PAGES = 64  # one page for each sequence of the largest batch. A page has 256 tokens by default.


def load(root: Path) -> tuple[str, Complete]:
    """Load the model and start its generation thread."""
    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(root / "huggingface", dtype=torch.bfloat16)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, eos_token_id=-1, max_new_tokens=64
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=_PAGES, max_batch_tokens=1024, max_requests_per_batch=64
        ),
    )
    manager.start()

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        recorder = Recorder(len(prompts))
        names = manager.add_requests(list(map(list, prompts)), max_new_tokens=num_tokens, record_timestamps=True)
        for _ in names:
            result = manager.get_result(timeout=600)
            if result is None or result.timestamps is None or result.error:
                raise RuntimeError(f"continuous batching failed: {result.error if result else 'the manager stopped'}")
            for token_id, at_s in zip(result.generated_tokens, result.timestamps, strict=True):
                recorder.add(names.index(result.request_id), [token_id], at_s)
        return recorder.recording

    return f"transformers {transformers.__version__}, continuous batching", complete


if __name__ == "__main__":
    serve(load)
