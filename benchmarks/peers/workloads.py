"""What engines are asked to do, and what is kept of how they did it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.checkpoints import SHAPE
from benchmarks.peers.process import EngineProcess
from benchmarks.peers.protocol import Prompts, Recording

SHARED_TOKENS = 512  # of the prefix that all sequences have in common
OWN_TOKENS = 16  # of each sequence after it
NUM_SHARING = 32


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts handed over at once, all of one length."""

    name: str
    num_prompts: int
    prompt_length: int
    num_tokens: int  # of each answer
    easier: str = ""  # name of a workload: a peer hopelessly behind at that one is not asked about this one

    def prompts(self, round_number: int) -> Prompts:
        """Return random prompts, the same for every engine; each round has others, so that none is found cached."""
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
    """What one engine did with one workload in one round."""

    elapsed_s: float  # from handing over the prompts to the last token
    first_token_s: float  # to the first token of every sequence
    decode_rate: float | None  # tokens/s while all sequences decode; None where they never do
    first_token_ids: list[int]

    @classmethod
    def of(cls, recording: Recording) -> "Sample":
        """Take what counts from a recording."""
        return cls(
            elapsed_s=max(times[-1] for times in recording.token_s),
            first_token_s=max(times[0] for times in recording.token_s),
            decode_rate=decode_rate(recording),
            first_token_ids=[token_ids[0] for token_ids in recording.token_ids],
        )


def decode_rate(recording: Recording) -> float | None:
    """Return tokens a second between the last sequence's first token and the first sequence's last one."""
    start_s = max(times[0] for times in recording.token_s)
    end_s = min(times[-1] for times in recording.token_s)
    count = sum(start_s < time_s <= end_s for times in recording.token_s for time_s in times)
    return count / (end_s - start_s) if count else None


def random_prompts(count: int, length: int, key: Sequence[int]) -> Prompts:
    """Return prompts of random tokens; the same key gives the same ones."""
    generator = np.random.default_rng(key)
    prompts: list[list[int]] = generator.integers(10, SHAPE.vocab_size, (count, length)).tolist()
    return prompts


def measure(engine: EngineProcess, workload: Workload, round_number: int) -> Sample:
    """Give an engine a workload."""
    return Sample.of(engine.complete(workload.prompts(round_number), workload.num_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Time to first token of sequences that begin alike and come one after the other."""

    first_s: float
    later_s: float  # median of all but the first
    elapsed_s: float  # for all of them


def measure_shared_prefix(engine: EngineProcess, round_number: int) -> SharedPrefix:
    """Ask for one token of each of many prompts with a common beginning nobody has seen before."""
    (prefix,) = random_prompts(1, SHARED_TOKENS, (round_number, 1, SHARED_TOKENS))
    tails = random_prompts(NUM_SHARING, OWN_TOKENS, (round_number, 2, SHARED_TOKENS))
    times = [engine.complete([[*prefix, *tail]], 1).token_s[0][0] for tail in tails]
    return SharedPrefix(first_s=times[0], later_s=statistics.median(times[1:]), elapsed_s=sum(times))


def measure_steps(engine: EngineProcess, num_sequences: int, context: int, num_steps: int) -> float:
    """Return the seconds of one step in which a number of sequences gain a token each.

    The same prompts every time, shorter ones the beginnings of longer, and one token beyond full blocks: where prefixes
    are kept, as ours are, only the first call computes more than that token.
    """
    prompts = [prompt[: context + 1] for prompt in random_prompts(num_sequences, 4097, (7,))]
    rate = decode_rate(engine.complete(prompts, num_steps))
    if rate is None:
        raise ValueError(f"{num_steps} steps are too few for {num_sequences} sequences ever to decode side by side")
    return num_sequences / rate
