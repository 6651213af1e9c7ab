"""Stop and continue workers in any order of events.

`test_costly_constraints` has real ones.
"""

from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from language_service.sampling.costly_workers import CostlyWorkers
from language_service.sampling.grammar_process import GrammarProcess

CHANGES = ["has started", "becomes slow", "replies", "gets a job", "is stopped", "ends"]


@dataclass(eq=False)
class Worker:
    """What `CostlyWorkers` needs of a worker."""

    begun: "Future[None]" = field(default_factory=Future)
    is_costly: bool = True
    was_stopped: bool = True
    has_ended: bool = False

    def stop(self) -> None:
        self.was_stopped = True

    def go_on(self) -> None:
        self.was_stopped = False


class AnyOrder(RuleBasedStateMachine):
    """Forward passes of several engines, and workers of all ages."""

    def __init__(self) -> None:
        super().__init__()
        self.costly = CostlyWorkers()
        self.workers: list[Worker] = []
        self.passes: list[ExitStack] = []

    @rule()
    def a_pass_begins(self) -> None:
        stack = ExitStack()
        stack.enter_context(self.costly.stopped())
        self.passes.append(stack)

    @rule(which=st.integers(0, 10))
    def a_pass_ends(self, which: int) -> None:
        if self.passes:
            self.passes.pop(which % len(self.passes)).close()

    @rule()
    def a_worker_starts(self) -> None:
        self.workers.append(Worker())
        self.update(self.workers[-1])

    @rule(which=st.integers(0, 10), what=st.sampled_from(CHANGES))
    def a_worker_changes(self, which: int, what: str) -> None:
        if not self.workers:
            return
        worker = self.workers[which % len(self.workers)]
        if what == "becomes slow" and not worker.begun.done():
            worker.begun.set_result(None)
        elif what == "replies":  # perhaps just before it was stopped
            worker.is_costly = False
        elif what == "gets a job":
            worker.is_costly = True  # after some processor time, so nobody is told at once
            return
        elif what in ("has started", "is stopped") and worker.is_costly:  # by itself, or by the timer
            worker.was_stopped = True
        elif what == "ends":
            self.workers.remove(worker)
            worker.has_ended = True
        self.update(worker)

    def update(self, worker: Worker) -> None:
        self.costly.update(cast("GrammarProcess", cast("Any", worker)))

    @rule()
    def all_replies_arrive(self) -> None:
        """Nobody stays stopped for ever."""
        while self.passes:
            self.passes.pop().close()
        for worker in self.workers:
            worker.is_costly = False
            self.update(worker)
        assert not any(worker.was_stopped for worker in self.workers)

    @invariant()
    def one_goes_on_at_a_time(self) -> None:
        stopped = [worker for worker in self.workers if worker.was_stopped]
        if stopped and not self.passes:
            running = self.costly._running
            assert running is not None
            assert not running.was_stopped


TestAnyOrder = AnyOrder.TestCase


def test_slow_workers_go_on_in_turn_and_new_ones_first() -> None:
    costly, workers = CostlyWorkers(), [Worker() for _ in range(4)]
    for worker in workers:
        costly.update(cast("GrammarProcess", cast("Any", worker)))
    for worker in workers[:3]:
        worker.begun.set_result(None)

    def next_one() -> Worker:
        with costly.stopped():
            assert all(worker.was_stopped for worker in workers)
        (running,) = (worker for worker in workers if not worker.was_stopped)
        return running

    assert next_one() is workers[3]
    workers[3].begun.set_result(None)
    assert sorted(workers.index(next_one()) for _ in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]
