"""`transformers` with `generate` on one batch, eager, with SDPA attention.

Most users run it like this.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.engines import THREADS
from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve


class TokenRecorder(StoppingCriteria):
    """Records the tokens after every step and never stops."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Record the last token of every sequence [B, T]."""
        for index, token_id in enumerate(input_ids[:, -1].tolist()):
            self._recorder.add(index, [token_id])
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(root: Path) -> tuple[str, Complete]:
    """Load the model."""
    torch.set_num_threads(THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(root / "huggingface", dtype=torch.bfloat16)

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        recorder = Recorder(len(prompts))
        ids_BT = torch.tensor(prompts)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )
        model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([TokenRecorder(recorder)]),
        )
        return recorder.recording

    # Without this, `generate` would use the end of sequence from the model's own configuration.
    model.generation_config.eos_token_id = None
    return f"transformers {transformers.__version__}, generate", complete


if __name__ == "__main__":
    serve(load)
