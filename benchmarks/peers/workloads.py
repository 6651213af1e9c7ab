"""Workloads of the decoding benchmark, and their measurements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.checkpoints import SHAPE
from benchmarks.peers.process import EngineProcess
from benchmarks.peers.protocol import Prompts, Recording

SHARED_TOKENS = 512  # length of the common prefix
OWN_TOKENS = 16  # tokens of each prompt after the prefix
NUM_SHARING = 32


@dataclass(frozen=True, slots=True)
class Workload:
    """A batch of prompts, all of the same length."""

    name: str
    num_prompts: int
    prompt_length: int
    num_tokens: int  # length of each answer
    easier: str = ""  # name of a workload: a peer that is very slow there skips this one

    def prompts(self, round_number: int) -> Prompts:
        """Return random prompts, the same for every engine.

        Every round has different ones, so no prefix cache has seen them.
        """
        return random_prompts(self.num_prompts, self.prompt_length, (round_number, self.num_prompts))


BATCHES = (
    Workload("batch 1", 1, 128, 64),
    Workload("batch 8", 8, 128, 64),
    Workload("batch 32", 32, 128, 64, easier="batch 8"),
    Workload("batch 64", 64, 128, 64, easier="batch 32"),
)
PREFILL = Workload("prefill of 1024", 1, 1024, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One engine's measurements of one workload in one round."""

    elapsed_s: float  # from the prompts to the last token
    first_token_s: float  # from the prompts until every sequence has its first token
    decode_rate: float | None  # tokens/s while all sequences decode, None if they never do
    first_token_ids: list[int]

    @classmethod
    def of(cls, recording: Recording) -> "Sample":
        """Summarise a recording."""
        return cls(
            elapsed_s=max(times[-1] for times in recording.token_s),
            first_token_s=max(times[0] for times in recording.token_s),
            decode_rate=decode_rate(recording),
            first_token_ids=[token_ids[0] for token_ids in recording.token_ids],
        )


def decode_rate(recording: Recording) -> float | None:
    """Return tokens/s while all sequences decode, or None.

    This is the time from the last sequence's first token to the first end of any sequence.
    """
    start_s = max(times[0] for times in recording.token_s)
    end_s = min(times[-1] for times in recording.token_s)
    count = sum(start_s < time_s <= end_s for times in recording.token_s for time_s in times)
    return count / (end_s - start_s) if count else None


def random_prompts(count: int, length: int, key: Sequence[int]) -> Prompts:
    """Return prompts of random tokens, equal for equal keys."""
    generator = np.random.default_rng(key)
    prompts: list[list[int]] = generator.integers(10, SHAPE.vocab_size, (count, length)).tolist()
    return prompts


def measure(engine: EngineProcess, workload: Workload, round_number: int) -> Sample:
    """Run a workload on an engine."""
    return Sample.of(engine.complete(workload.prompts(round_number), workload.num_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Times to first token of prompts with a common prefix."""

    first_s: float
    later_s: float  # median of all except the first
    elapsed_s: float  # sum


def measure_shared_prefix(engine: EngineProcess, round_number: int) -> SharedPrefix:
    """Measure prompts with a common prefix, one after the other."""
    (prefix,) = random_prompts(1, SHARED_TOKENS, (round_number, 1, SHARED_TOKENS))
    tails = random_prompts(NUM_SHARING, OWN_TOKENS, (round_number, 2, SHARED_TOKENS))
    times = [engine.complete([[*prefix, *tail]], 1).token_s[0][0] for tail in tails]
    return SharedPrefix(first_s=times[0], later_s=statistics.median(times[1:]), elapsed_s=sum(times))


def measure_steps(engine: EngineProcess, num_sequences: int, context: int, num_steps: int) -> float:
    """Return the time of one decoding step, seconds.

    The prompts are always the same, a short one is the beginning of a longer one, and each ends one token after a full
    block. So with a prefix cache, only the first call computes more than this token.
    """
    prompts = [prompt[: context + 1] for prompt in random_prompts(num_sequences, 4097, (7,))]
    rate = decode_rate(engine.complete(prompts, num_steps))
    if rate is None:
        raise ValueError(f"{num_sequences} sequences never all decoded at once; use more than {num_steps} steps")
    return num_sequences / rate
