"""Run workloads on all engines in turn, drop slow peers."""

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

OURS = "tandem"  # the engine of the step measurements
STEPS = "steps"  # the key of their read bandwidth
SKIP_BELOW = 0.6  # share of the best peer's speed: a slower peer skips the workload's other rounds
STOP_BELOW = 0.35  # a slower peer skips larger workloads too

S = TypeVar("S", Sample, SharedPrefix)
T = TypeVar("T")


@dataclass(slots=True)
class Results:
    """Measurements of a run. Lists have one entry per round."""

    states: dict[str, str] = field(default_factory=dict)  # by engine: its version, or why it is missing
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)  # by workload and engine
    shared: dict[str, list[SharedPrefix]] = field(default_factory=dict)  # by engine
    step_s: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # of our engine, by sequences and context
    read_bandwidth: dict[str, list[float]] = field(default_factory=dict)  # bytes/s, before each round, by workload
    matmul_peaks: list[float] = field(default_factory=list)  # FLOP/s


class Comparison:
    """Runs workloads on engines in turn.

    An engine that fails is dropped.
    """

    def __init__(self, kinds: Sequence[EngineKind], checkpoints: Path, stack: ExitStack) -> None:
        """Start all installed engines, to be stopped by `stack`."""
        self.results = Results()
        self._ours = {kind.name for kind in kinds if kind.is_ours}
        self._with_prefix_cache = {kind.name for kind in kinds if kind.has_prefix_cache}
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
            self._attempt(engine, partial(measure, engine, Workload("warm-up", 8, 128, 4), 0))

    def run(self, workload: Workload, round_number: int) -> None:
        """Run one round of a workload on every engine.

        The engines' order changes from round to round. A slow peer cannot be the best and would take most of the time.
        So a peer below `SKIP_BELOW` in the first round skips the others. A peer below `STOP_BELOW` at an easier
        workload is stopped.
        """
        samples = self.results.samples.setdefault(workload.name, {})
        for engine in self._in_turn(round_number):
            if self._relative_speed(engine.name, self.results.samples.get(workload.easier, {})) < STOP_BELOW:
                self._engines.pop(engine.name).close()
            elif self._relative_speed(engine.name, samples) > SKIP_BELOW:
                self._add_sample(engine, samples, partial(measure, engine, workload, round_number))

    def share_prefix(self, round_number: int) -> None:
        """Measure shared prefixes on all engines with a prefix cache.

        Slow peers skip rounds as in `run`.
        """
        samples = self.results.shared
        for engine in self._in_turn(round_number):
            if engine.name in self._with_prefix_cache and self._relative_speed(engine.name, samples) > SKIP_BELOW:
                self._add_sample(engine, samples, partial(measure_shared_prefix, engine, round_number))

    def step(self, num_sequences: int, context: int, num_steps: int) -> None:
        """Measure the time of one step of our engine."""
        if OURS in self._engines:
            samples = self.results.step_s.setdefault((num_sequences, context), [])
            samples.append(measure_steps(self._engines[OURS], num_sequences, context, num_steps))

    def _in_turn(self, round_number: int) -> Iterator[EngineProcess]:
        engines = list(self._engines.values())
        first = round_number % max(1, len(engines))
        yield from engines[first:] + engines[:first]

    def _relative_speed(self, name: str, samples: dict[str, list[S]]) -> float:
        """Return a peer's speed relative to the best peer.

        It is measured in the first round. Our engines, and peers without a sample, have 1.
        """
        seconds = {peer: rounds[0].elapsed_s for peer, rounds in samples.items() if peer not in self._ours}
        return min(seconds.values()) / seconds[name] if name in seconds else 1.0

    def _add_sample(self, engine: EngineProcess, samples: dict[str, list[S]], work: Callable[[], S]) -> None:
        sample = self._attempt(engine, work)
        if sample is not None:
            samples.setdefault(engine.name, []).append(sample)

    def _attempt(self, engine: EngineProcess, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except EngineFailed as error:
            self.results.states[engine.name] = f"failed: {error}"
            del self._engines[engine.name]
            return None
