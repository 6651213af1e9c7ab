"""The load of `benchmarks.replica_routing`, in simulated time.

Users in a closed loop ask the demo model about images of Zipf-like popularity.
"""

import asyncio
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.tools.report import RESULTS
from benchmarks.tools.simulated_gateway import Choose
from benchmarks.tools.simulated_replicas import BLOCK, LanguageReplica, Prompt
from benchmarks.tools.traffic import QUESTIONS, zipf

TOKEN_BYTES = 1024  # of the demo model's KV cache
BEFORE_IMAGE, IMAGE = 6, 32  # tokens
AFTER_IMAGE = (18, 18, 21, 24)  # by question
PREFILL_TOKEN_S = 1.5e-5  # from the processor time of prompts of two lengths, `direct_variant`


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """A load, as `benchmarks.replica_routing` makes it."""

    users: int
    images: int
    rounds: int
    requests: int  # in a round
    answer_tokens: int
    cache_bytes: int  # of all replicas together


@dataclass(frozen=True, slots=True)
class Routed:
    """Results of one way of routing."""

    hit_rate: float  # prompt tokens from the KV cache, percent
    queue_p99_ms: float
    requests_per_s: float


class DemoTimes:
    """Times of the demo model, as `latency` measured them."""

    def __init__(self, processes: int) -> None:
        """Let replicas share two cores."""
        figures = {one["name"]: one["value"] for one in json.loads((RESULTS / "latency.json").read_text())["figures"]}
        sizes = (1, 8, 32)
        steps_ms = [figures[f"text, {size} streams: inter-token latency p50"] for size in sizes]
        self._share = max(1.0, processes / 2)
        self._steps_s = (np.interp(np.arange(sizes[-1] + 1), sizes, steps_ms) / 1000 * self._share).tolist()

    def step_s(self, sequences: int) -> float:
        """Return the time of a step that decodes sequences."""
        return float(self._steps_s[min(sequences, len(self._steps_s) - 1)])

    def prefill_s(self, tokens: int) -> float:
        """Return the time that prefill adds to a step."""
        return tokens * PREFILL_TOKEN_S * self._share

    def encode_s(self) -> float:
        """Return no time: the language stage alone is simulated."""
        return 0.0


async def closed_loop(load: Users, choose: Choose, replicas: int, seed: int = 0) -> Routed:
    """Ask all questions. The first round fills the caches."""
    random = np.random.default_rng(seed)
    blocks = load.cache_bytes // replicas // TOKEN_BYTES // BLOCK
    language = {
        f"127.0.0.1:{50052 + 7 * number}": LanguageReplica(
            str(number),
            DemoTimes(replicas),
            num_blocks=blocks,
            max_running=64,
            max_waiting=256,
            jitter=random.random,
        )
        for number in range(replicas)
    }
    rounds = [await _one_round(load, choose, language, number) for number in range(1 + load.rounds)][1:]
    return Routed(
        hit_rate=statistics.median(hits for hits, _, _ in rounds),
        queue_p99_ms=1000 * float(np.percentile(np.concatenate([queue for _, queue, _ in rounds]), 99)),
        requests_per_s=statistics.median(rate for _, _, rate in rounds),
    )


async def _one_round(
    load: Users, choose: Choose, language: dict[str, LanguageReplica], number: int
) -> tuple[float, list[float], float]:
    """Return hit rate, queue times and requests per second."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    queue = iter(list(enumerate(zipf(range(load.images), load.requests, number))))
    calls = dict.fromkeys(language, 0)
    prompt_tokens, cached_tokens, waited = 0, 0, []

    async def user() -> None:
        nonlocal prompt_tokens, cached_tokens
        for index, image in queue:
            question = index % len(QUESTIONS)
            prompt = _prompt(image, question, (number, index), load.answer_tokens)
            name = choose(calls, b"%d" % image)
            calls[name] += 1
            work = language[name].submit(prompt, load.answer_tokens)
            await work.done
            calls[name] -= 1
            prompt_tokens += prompt.num_tokens
            # The text before the image is computed while the gateway gets the image, so the cache does not save it.
            cached_tokens += max(0, work.cached_tokens - BEFORE_IMAGE)
            waited.append(work.queue_s)

    await asyncio.gather(*(user() for _ in range(load.users)))
    return 100 * cached_tokens / prompt_tokens, waited, load.requests / (loop.time() - started_s)


def _prompt(image: int, question: int, request: Sequence[int], answer_tokens: int) -> Prompt:
    """Return a prompt. Image, then question share its blocks."""
    of_image = BEFORE_IMAGE + IMAGE
    length = of_image + AFTER_IMAGE[question]
    names: list[tuple[int, Callable[[int], bytes]]] = [
        (of_image // BLOCK, lambda block: b"i%d:%d" % (image, block)),
        (length // BLOCK, lambda block: b"q%d:%d:%d" % (image, question, block)),
        ((length + answer_tokens) // BLOCK, lambda block: b"a%d:%d:%d" % (*request, block)),
    ]
    starts = [0, *(end for end, _ in names)]
    return Prompt(
        length,
        list(
            itertools.chain.from_iterable(
                map(name, range(start, end)) for start, (end, name) in zip(starts, names, strict=False)
            )
        ),
    )
