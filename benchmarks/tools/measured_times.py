"""Service times of replicas, from committed measurements.

The full-size model's times come from `full_size`, on two cores. How a step grows with its batch comes from `decode`,
and how the time of an image varies from `vision_backends`. Two factors make them those of an accelerator: one of memory
bandwidth, for the weights that each step reads, and one of matrix products, for all the rest.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tools.report import RESULTS

_PROCESSOR = "amd-epyc-zen-4-avx512bf16"  # of all measurements here
# Prefill of 1,024 tokens over one step of one sequence, both of `decode`.
_PREFILL_TOKENS = 1024


@dataclass(slots=True)
class MeasuredTimes:
    """Seconds of the work of one replica."""

    steps_s: Mapping[int, float]  # of one step by sequences
    prefill_token_s: float
    images_s: tuple[float, ...]  # samples of the time of one image
    random: np.random.Generator
    _steps: list[float] = field(init=False)

    def __post_init__(self) -> None:
        sizes = np.array(sorted(self.steps_s))
        times = np.array([self.steps_s[size] for size in sizes])
        largest = int(sizes[-1])
        self._steps = np.interp(np.arange(largest + 1), sizes, times).tolist()

    def step_s(self, sequences: int) -> float:
        """Return the time of a step that decodes sequences."""
        return self._steps[min(sequences, len(self._steps) - 1)]

    def prefill_s(self, tokens: int) -> float:
        """Return the time that prefill adds to a step."""
        return tokens * self.prefill_token_s

    def encode_s(self) -> float:
        """Draw the time to encode one image."""
        return self.images_s[int(self.random.integers(len(self.images_s)))]


def full_size_times(bandwidth: float, compute: float, random: np.random.Generator) -> MeasuredTimes:
    """Return times of the full-size model.

    Args:
        bandwidth: factor over the memory bandwidth of the two cores that were measured.
        compute: factor over their matrix products.
        random: draws the images' times.
    """
    decode = _details(f"decode-{_PROCESSOR}")
    images = _details(f"vision_backends-{_PROCESSOR}")["vit-l-14"]["seconds"]
    step_s = statistics.median(_details("full_size")["between_tokens_s"])
    by_size = {row["sequences"]: statistics.median(row["s"]) for row in decode["step_s"] if row["context"] == 128}
    prefill_s = statistics.median(sample["elapsed_s"] for sample in decode["samples"]["prefill of 1024"]["tandem"])
    one_s = by_size[1]
    scale = step_s / one_s  # from the decoder that was measured to the full-size one
    return MeasuredTimes(
        steps_s={size: step_s / bandwidth + scale * (seconds - one_s) / compute for size, seconds in by_size.items()},
        prefill_token_s=scale * prefill_s / _PREFILL_TOKENS / compute,
        images_s=tuple(seconds / compute for seconds in images["1"]["torch"]),
        random=random,
    )


def _details(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())["details"]
