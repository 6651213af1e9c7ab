"""vLLM's vision tower alone: `python -m benchmarks.peers.vllm_tower FOLDER`, in vLLM's environment.

It loads the model and writes "ready". It answers each line "WIDTH HEIGHT" with the seconds that the tower took for an
image of this size, in pixels. It ends when its input is closed.
"""

import os
import sys
import time
from typing import Any

import torch
from vllm import LLM  # type: ignore[import-not-found]


def encode(model: Any, width: int, height: int) -> float:
    """Return the seconds that the tower takes for random patches."""
    patch, frames = model.config.vision_config.patch_size, model.config.vision_config.temporal_patch_size
    rows, columns = height // patch, width // patch
    patches = torch.rand(rows * columns, 3 * frames * patch**2) * 2 - 1
    start_s = time.perf_counter()
    with torch.inference_mode():
        model.visual(patches.bfloat16(), grid_thw=[[1, rows, columns]])
    return time.perf_counter() - start_s


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries goes to the log
    model = LLM(model=sys.argv[1], dtype="bfloat16", max_model_len=2048, max_num_seqs=1, skip_mm_profiling=True)
    print("ready", file=answers)
    for line in sys.stdin:
        width, height = map(int, line.split())

        def work(module: Any, width: int = width, height: int = height) -> float:
            return encode(module, width, height)

        print(model.apply_model(work)[0], file=answers)


if __name__ == "__main__":
    main()
