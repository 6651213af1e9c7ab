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
SHARED_PREFIX = "shared prefix"
FAR_BEHIND = 0.6  # of the best peer's speed

T = TypeVar("T")


@dataclass(slots=True)
class Results:
    """What a run saw. Lists are by round."""

    states: dict[str, str] = field(default_factory=dict)  # of each engine: what it is, or why it is not there
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)  # by workload and engine
    shared: dict[str, list[SharedPrefix]] = field(default_factory=dict)  # by engine
    step_s: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # ours, by sequences and context
    read_bandwidth: list[float] = field(default_factory=list)  # bytes/s
    matmul_peak: float = 0.0  # of bfloat16, operations/s


class Contest:
    """Runs engines in turn and collects what they did. An engine that fails takes no further part."""

    def __init__(self, kinds: Sequence[EngineKind], checkpoints: Path, stack: ExitStack) -> None:
        """Start all engines that are installed and warm each; `stack` ends them."""
        self.results = Results()
        self._ours = {kind.name for kind in kinds if kind.is_ours}
        self._engines: dict[str, EngineProcess] = {}
        self._behind: set[tuple[str, str]] = set()  # peers, by name and workload
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
        most of the time.
        """
        taken = self.results.samples.setdefault(workload.name, {})
        for engine in self._in_turn(round_number):
            if {(engine.name, workload.name), (engine.name, workload.easier)} & self._behind:
                continue
            sample = self._attempt(engine, partial(measure, engine, workload, round_number))
            if sample is not None:
                taken.setdefault(engine.name, []).append(sample)
        self._note_behind(workload.name, {name: samples[0].elapsed_s for name, samples in taken.items()})

    def share_prefix(self, round_number: int) -> None:
        """Ask every engine for the first tokens of prompts that begin alike; one far behind is not asked again."""
        taken = self.results.shared
        for engine in self._in_turn(round_number):
            if (engine.name, SHARED_PREFIX) in self._behind:
                continue
            sample = self._attempt(engine, partial(measure_shared_prefix, engine, round_number))
            if sample is not None:
                taken.setdefault(engine.name, []).append(sample)
        self._note_behind(SHARED_PREFIX, {name: samples[0].later_s for name, samples in taken.items()})

    def step(self, num_sequences: int, context: int, num_steps: int) -> None:
        """Measure what our engine takes for a step."""
        if OURS in self._engines:
            taken = self.results.step_s.setdefault((num_sequences, context), [])
            taken.append(measure_steps(self._engines[OURS], num_sequences, context, num_steps))

    def _in_turn(self, round_number: int) -> Iterator[EngineProcess]:
        engines = list(self._engines.values())
        first = round_number % max(1, len(engines))
        yield from engines[first:] + engines[:first]

    def _note_behind(self, workload: str, seconds: dict[str, float]) -> None:
        peers = {name: taken_s for name, taken_s in seconds.items() if name not in self._ours}
        self._behind |= {(name, workload) for name in peers if peers[name] * FAR_BEHIND > min(peers.values())}

    def _attempt(self, engine: EngineProcess, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except EngineFailed as error:
            self.results.states[engine.name] = f"failed: {error}"
            del self._engines[engine.name]
            return None
