"""The protocol between the benchmark and one engine, and the engine's side of it.

A runner is a process: `python -m benchmarks.peers.NAME CHECKPOINTS`, run with the interpreter of the environment that
holds its engine, so nothing here needs more than the standard library. It loads once and writes `{"ready": "what it
is"}`; then it answers every line on its standard input with one on its standard output, and ends with its input.

A request is `{"prompts": [[token ids], ...], "num_tokens": N}`: hand over all prompts at once, continue each greedily
by exactly N tokens, whatever the model would end with. The answer is a `Recording` as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Recording:
    """What came back, and when; one list a prompt, in the order of the prompts."""

    token_ids: list[list[int]]
    token_s: list[list[float]]  # seconds from handing over the prompts to having each token


class Recorder:
    """Collects the tokens of one request as they come."""

    def __init__(self, num_prompts: int) -> None:
        """Start the clock: the prompts are handed over now."""
        self.recording = Recording([[] for _ in range(num_prompts)], [[] for _ in range(num_prompts)])
        self.start_s = time.perf_counter()

    def add(self, index: int, token_ids: Sequence[int], at_s: float | None = None) -> None:
        """Note the next tokens of prompt `index`, which came at `at_s` of `time.perf_counter`, or just now."""
        passed_s = (time.perf_counter() if at_s is None else at_s) - self.start_s
        self.recording.token_ids[index] += token_ids
        self.recording.token_s[index] += [passed_s] * len(token_ids)


# Continues prompts by a number of tokens each.
Complete = Callable[[Prompts, int], Recording]


def serve(load: Callable[[Path], tuple[str, Complete]]) -> None:
    """Load an engine from the folder the command line names, say what it is, and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print belongs to the log, not between the answers
    name, complete = load(Path(sys.argv[1]))
    print(json.dumps({"ready": name}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(asdict(complete(request["prompts"], request["num_tokens"]))), file=answers)
