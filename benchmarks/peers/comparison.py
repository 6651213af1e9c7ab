"""The engines side by side: who takes part, whose turn it is, who leaves, and what they did."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.peers.engines import EngineKind
from benchmarks.peers.process import EngineFailed, EngineProcess
from benchmarks.peers.workloads import (
    Sample,
    SharedPrefix,
    Workload,
    measure,
    measure_shared_prefix,
    measure_steps,
)

OURS = "tandem"  # whose steps are looked at one by one
FAR_BEHIND = 0.6  # of the best peer's speed
HOPELESS = 0.35

S = TypeVar("S", Sample, SharedPrefix)
T = TypeVar("T")


@dataclass(slots=True)
class Results:
    """What a run saw. Lists are by round."""

    states: dict[str, str] = field(default_factory=dict)  # of each engine: what it is, or why it is not there
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)  # by workload and engine
    shared: dict[str, list[SharedPrefix]] = field(default_factory=dict)  # by engine
    step_s: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # ours, by sequences and context
    read_bandwidth: dict[str, list[float]] = field(default_factory=dict)  # bytes/s, before each round of a workload
    matmul_peak: float = 0.0  # of bfloat16, operations/s


class Contest:
    """Runs engines in turn and collects what they did. An engine that fails takes no further part."""

    def __init__(self, kinds: Sequence[EngineKind], checkpoints: Path, stack: ExitStack) -> None:
        """Start all engines that are installed and warm each; `stack` ends them."""
        self.results = Results()
        self._ours = {kind.name for kind in kinds if kind.is_ours}
        self._keeps_prefixes = {kind.name for kind in kinds if kind.keeps_prefixes}
        self._engines: dict[str, EngineProcess] = {}
        for kind in kinds:
            self.results.states[kind.name] = "not installed"
            if kind.installed:
                self._engines[kind.name] = kind.start(checkpoints)
                stack.callback(self._engines[kind.name].close)
        for engine in self._in_turn(0):
            self._attempt(engine, engine.wait)
            self.results.states[engine.name] = engine.version or self.results.states[engine.name]
        for engine in self._in_turn(0):
            self._attempt(engine, partial(measure, engine, Workload("warm", 8, 128, 4), 0))

    def run(self, workload: Workload, round_number: int) -> None:
        """Give every engine a workload, in every round another one first.

        A peer that was far behind another in the first round is not asked again: it cannot be the best, and would take
        most of the time. One that was hopelessly behind at an easier workload is ended.
        """
        taken = self.results.samples.setdefault(workload.name, {})
        for engine in self._in_turn(round_number):
            if self._pace(engine.name, self.results.samples.get(workload.easier, {})) < HOPELESS:
                self._engines.pop(engine.name).close()
            elif self._pace(engine.name, taken) > FAR_BEHIND:
                self._take(engine, taken, partial(measure, engine, workload, round_number))

    def share_prefix(self, round_number: int) -> None:
        """Ask the engines that keep prefixes for the first tokens of prompts that begin alike, as in `run`."""
        taken = self.results.shared
        for engine in self._in_turn(round_number):
            if engine.name in self._keeps_prefixes and self._pace(engine.name, taken) > FAR_BEHIND:
                self._take(engine, taken, partial(measure_shared_prefix, engine, round_number))

    def step(self, num_sequences: int, context: int, num_steps: int) -> None:
        """Measure what our engine takes for a step."""
        if OURS in self._engines:
            taken = self.results.step_s.setdefault((num_sequences, context), [])
            taken.append(measure_steps(self._engines[OURS], num_sequences, context, num_steps))

    def _in_turn(self, round_number: int) -> Iterator[EngineProcess]:
        engines = list(self._engines.values())
        first = round_number % max(1, len(engines))
        yield from engines[first:] + engines[:first]

    def _pace(self, name: str, taken: dict[str, list[S]]) -> float:
        """Return a peer's speed in the first round over that of the best peer; 1 for ours, and before that round."""
        seconds = {peer: samples[0].elapsed_s for peer, samples in taken.items() if peer not in self._ours}
        return min(seconds.values()) / seconds[name] if name in seconds else 1.0

    def _take(self, engine: EngineProcess, taken: dict[str, list[S]], work: Callable[[], S]) -> None:
        sample = self._attempt(engine, work)
        if sample is not None:
            taken.setdefault(engine.name, []).append(sample)

    def _attempt(self, engine: EngineProcess, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except EngineFailed as error:
            self.results.states[engine.name] = f"failed: {error}"
            del self._engines[engine.name]
            return None
