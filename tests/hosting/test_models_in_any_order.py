"""Random orders of loads, leases, unloads, failures and cancellations."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chassis.errors import DataLoss, NotFound, TandemError
from chassis.health import SERVING
from tandem.v1 import model_pb2
from tests.hosting.hosted import Model, make_host, serving, settle


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence the log, because hundreds of loads fail here."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class HostMachine(RuleBasedStateMachine):
    """Random calls on two tags.

    A leased model is never closed. In the end, every model is closed exactly once.
    """

    tags = st.sampled_from(["a-v1.0.0", "b-v1.0.0"])

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.run(self.begin())

    async def begin(self) -> None:
        self.host, self.loader, self.health = make_host()
        self.leases: list[tuple[Any, Model]] = []
        self.calls: list[asyncio.Task[Any]] = []

    def run(self, work: Any) -> Any:
        async def until_settled() -> Any:
            result = await work
            await settle()
            return result

        return self.loop.run_until_complete(until_settled())

    async def start(self, call: Any) -> None:
        task = asyncio.ensure_future(call)
        # Read the exception, so that asyncio does not log it.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.calls.append(task)

    @rule(tag=tags)
    def load(self, tag: str) -> None:
        self.run(self.start(self.host.load(tag)))

    @rule(tag=tags)
    def unload(self, tag: str) -> None:
        self.run(self.start(self.host.unload(tag)))

    @precondition(lambda self: self.loader.waiting)
    @rule(error=st.sampled_from([None, None, DataLoss("Broken."), OSError(), NotFound("None.", reason="UNKNOWN_TAG")]))
    def finish_load(self, error: Exception | None) -> None:
        async def finish() -> None:
            self.loader.finish(error)

        self.run(finish())

    @rule(tag=tags)
    def lease(self, tag: str) -> None:
        async def take() -> None:
            lease = self.host.lease(tag)
            try:
                self.leases.append((lease, lease.__enter__()))
            except TandemError:
                states = {info.tag: info.state for info in self.host.list()}
                assert states.get(tag) != model_pb2.MODEL_STATE_READY

        self.run(take())

    @precondition(lambda self: self.leases)
    @rule()
    def end_lease(self) -> None:
        async def end() -> None:
            self.leases.pop(0)[0].__exit__(None, None, None)

        self.run(end())

    @precondition(lambda self: self.calls)
    @rule()
    def cancel_a_caller(self) -> None:
        async def cancel() -> None:
            self.calls.pop(0).cancel()

        self.run(cancel())

    @invariant()
    def leased_models_are_open(self) -> None:
        assert all(model.num_closed == 0 for _, model in self.leases)

    @invariant()
    def one_load_per_tag(self) -> None:
        waiting = [tag for tag, _ in self.loader.waiting]
        assert len(waiting) == len(set(waiting))

    @invariant()
    def only_ready_models_are_healthy(self) -> None:
        for info in self.host.list():
            assert (serving(self.health, info.tag) == SERVING) == (info.state == model_pb2.MODEL_STATE_READY)

    @invariant()
    def open_models_are_exactly_the_listed_ones(self) -> None:
        holding = {model_pb2.MODEL_STATE_READY, model_pb2.MODEL_STATE_DRAINING}
        held = [info.tag for info in self.host.list() if info.state in holding]
        assert sorted(model.tag for model in self.loader.made if model.num_closed == 0) == held

    def teardown(self) -> None:
        async def end() -> None:
            closing = asyncio.ensure_future(self.host.close())
            while self.leases or self.loader.waiting:
                if self.leases:
                    self.leases.pop()[0].__exit__(None, None, None)
                if self.loader.waiting:
                    self.loader.finish()
                await settle()
            await asyncio.wait_for(closing, 20)
            await asyncio.gather(*self.calls, return_exceptions=True)

        self.run(end())
        self.loop.close()
        assert all(model.num_closed == 1 for model in self.loader.made)
        assert self.host.list() == []


HostMachine.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=25, deadline=None)
TestHost = HostMachine.TestCase
