"""The protocol between benchmark and engine, and the engine's side.

A runner is a process: `python -m benchmarks.peers.NAME CHECKPOINTS [FORMAT]`. It runs in the environment of its engine,
so this module imports only the standard library. The runner loads the model and writes `{"ready": "name and version"}`.
It then answers each line on standard input with one line on standard output. It ends when its input is closed.

A request is `{"prompts": [[token ids], ...], "num_tokens": N}`. The engine gets all prompts at once, and continues each
greedily by exactly N tokens, ignoring the end of sequence. The answer is a `Recording` as JSON.
"""

import io
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
    """Generated tokens and their times, one list per prompt."""

    token_ids: list[list[int]]
    token_s: list[list[float]]  # seconds since the engine got the prompts


class Recorder:
    """Records the tokens of one request and their times."""

    def __init__(self, num_prompts: int) -> None:
        """Start the clock, just before the engine gets the prompts."""
        self.recording = Recording([[] for _ in range(num_prompts)], [[] for _ in range(num_prompts)])
        self.start_s = time.perf_counter()

    def add(self, index: int, token_ids: Sequence[int], at_s: float | None = None) -> None:
        """Record the next tokens of prompt `index`.

        `at_s` is their time by `time.perf_counter`, by default now.
        """
        passed_s = (time.perf_counter() if at_s is None else at_s) - self.start_s
        self.recording.token_ids[index] += token_ids
        self.recording.token_s[index] += [passed_s] * len(token_ids)


# Continues prompts by a number of tokens.
Complete = Callable[[Prompts, int], Recording]


def serve(load: Callable[..., tuple[str, Complete]]) -> None:
    """Load an engine and answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries goes to the log, not between the answers
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the log is complete even if the engine is killed
    name, complete = load(Path(sys.argv[1]), *sys.argv[2:])
    print(json.dumps({"ready": name}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(asdict(complete(request["prompts"], request["num_tokens"]))), file=answers)
