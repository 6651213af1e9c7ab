"""The models of a process: every order of loading, leasing and unloading keeps the rules."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chassis.errors import DataLoss, FailedPrecondition, Internal, InvalidArgument, NotFound, TandemError, Unavailable
from chassis.health import NOT_SERVING, SERVING, Health
from chassis.models import ModelCalls, ModelHost
from tandem.v1 import model_pb2

SERVICE = "tandem.v1.VisionService"
TAG = "tiny-v1.0.0"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Drop the log: the state machine fails loads by the hundred."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class Model:
    """A model that only remembers what was done to it."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.num_closed = 0

    def info(self) -> model_pb2.ModelInfo:
        return model_pb2.ModelInfo(tag=self.tag, num_parameters=7)

    async def close(self) -> None:
        self.num_closed += 1


class Loader:
    """Loads when it is told to: `finish` lets the oldest load that waits end, well or with an error."""

    def __init__(self) -> None:
        self.made: list[Model] = []
        self.waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.called = asyncio.Event()

    async def __call__(self, tag: str) -> Model:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((tag, gate))
        self.called.set()
        await gate
        self.made.append(Model(tag))
        return self.made[-1]

    def finish(self, error: Exception | None = None) -> None:
        _tag, gate = self.waiting.pop(0)
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def make() -> tuple[ModelHost[Model], Loader, Health]:
    loader, health = Loader(), Health()
    return ModelHost(load=loader, health=health, service_name=SERVICE), loader, health


def serving(health: Health, tag: str = TAG) -> Any:
    return health.servicer._server_status.get(f"{SERVICE}/{tag}")


async def loaded(host: ModelHost[Model], loader: Loader, tag: str = TAG) -> model_pb2.ModelInfo:
    loading = asyncio.create_task(host.load(tag))
    await settle()
    loader.finish()
    return await loading


async def test_a_model_is_loaded_once_for_all_who_ask_at_the_same_time() -> None:
    host, loader, health = make()
    loads = [asyncio.create_task(host.load(TAG)) for _ in range(5)]
    await settle()
    assert len(loader.waiting) == 1
    assert host.get(TAG).state == model_pb2.MODEL_STATE_LOADING
    assert serving(health) == NOT_SERVING
    with pytest.raises(Unavailable) as caught, host.lease(TAG):
        pass
    assert (caught.value.reason, caught.value.retry_after_s) == ("MODEL_LOADING", 1)
    loader.finish()
    infos = await asyncio.gather(*loads)
    assert [info.state for info in infos] == [model_pb2.MODEL_STATE_READY] * 5
    assert infos[0].num_parameters == 7
    assert infos[0].load_s > 0
    assert serving(health) == SERVING
    assert (await host.load(TAG)).tag == TAG  # one that is ready is not loaded again
    assert len(loader.made) == 1


async def test_a_caller_that_leaves_does_not_stop_the_load_others_wait_for() -> None:
    host, loader, _ = make()
    first, second = (asyncio.create_task(host.load(TAG)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    loader.finish()
    assert (await second).state == model_pb2.MODEL_STATE_READY


@pytest.mark.parametrize(
    ("raised", "kind", "reason"),
    [(DataLoss("Broken.", reason="DIGEST"), DataLoss, "DIGEST"), (OSError("/secret"), Internal, "MODEL_LOAD_FAILED")],
)
async def test_a_failed_load_stays_visible_and_can_be_tried_again(
    raised: Exception, kind: type[TandemError], reason: str
) -> None:
    host, loader, health = make()
    loads = [asyncio.create_task(host.load(TAG)) for _ in range(2)]
    await settle()
    loader.finish(raised)
    for load in loads:
        with pytest.raises(kind) as caught:
            await load
        assert caught.value.reason == reason
        assert "/secret" not in caught.value.message
    assert host.get(TAG).state == model_pb2.MODEL_STATE_FAILED
    assert serving(health) == NOT_SERVING
    with pytest.raises(FailedPrecondition), host.lease(TAG):
        pass
    assert (await loaded(host, loader)).state == model_pb2.MODEL_STATE_READY
    assert serving(health) == SERVING


@pytest.mark.parametrize("error", [NotFound("None.", reason="UNKNOWN_TAG"), InvalidArgument("No.", reason="BAD_TAG")])
async def test_a_tag_that_names_nothing_leaves_nothing(error: TandemError) -> None:
    """Else a caller could fill the table, and every ListModels, with names of its own."""
    host, loader, _ = make()
    loading = asyncio.create_task(host.load(TAG))
    await settle()
    loader.finish(error)
    with pytest.raises(type(error)):
        await loading
    assert host.list() == []
    with pytest.raises(NotFound):
        host.get(TAG)


async def test_unloading_waits_for_the_last_lease_and_takes_no_new_one() -> None:
    host, loader, health = make()
    await loaded(host, loader)
    with host.lease(TAG) as model, host.lease(TAG):
        unloads = [asyncio.create_task(host.unload(TAG)) for _ in range(2)]
        await settle()
        assert host.get(TAG).state == model_pb2.MODEL_STATE_DRAINING
        assert serving(health) == NOT_SERVING
        with pytest.raises(Unavailable, match="being unloaded"), host.lease(TAG):
            pass
        with pytest.raises(Unavailable, match="being unloaded"):
            await host.load(TAG)
        assert model.num_closed == 0
    await asyncio.gather(*unloads)
    assert model.num_closed == 1
    assert host.list() == []


async def test_a_lease_ends_with_its_block_even_when_the_block_fails() -> None:
    host, loader, _ = make()
    await loaded(host, loader)
    with pytest.raises(ZeroDivisionError), host.lease(TAG):
        raise ZeroDivisionError
    await asyncio.wait_for(host.unload(TAG), 1)


async def test_unloading_what_is_still_loading_waits_for_it() -> None:
    host, loader, _ = make()
    loading = asyncio.create_task(host.load(TAG))
    await settle()
    unloading = asyncio.create_task(host.unload(TAG))
    await settle()
    loader.finish()
    await asyncio.gather(loading, unloading)
    assert loader.made[0].num_closed == 1
    assert host.list() == []


async def test_closing_unloads_all_and_refuses_further_loads() -> None:
    host, loader, _ = make()
    await loaded(host, loader)
    await loaded(host, loader, "other-v1.0.0")
    await host.close()
    assert [model.num_closed for model in loader.made] == [1, 1]
    with pytest.raises(Unavailable):
        await host.load(TAG)


async def test_a_model_that_fails_to_close_is_gone_all_the_same() -> None:
    host, loader, _ = make()
    await loaded(host, loader)
    loader.made[0].close = fail_to_close  # type: ignore[method-assign]
    await host.unload(TAG)
    assert host.list() == []


async def fail_to_close() -> None:
    raise RuntimeError("stuck")


async def test_the_model_calls_answer_from_the_host(serve: Any) -> None:
    host, loader, _ = make()

    class Calls(ModelCalls[Model]):
        models = host

    handlers = {name: getattr(Calls, name) for name in ("GetModel", "ListModels", "LoadModel", "UnloadModel")}
    run = await serve(vision={**handlers, "models": host})
    loading = asyncio.ensure_future(run.vision.LoadModel(model_pb2.LoadModelRequest(tag=TAG)))
    await asyncio.wait_for(loader.called.wait(), 5)
    loader.finish()
    assert (await loading).model.state == model_pb2.MODEL_STATE_READY
    assert (await run.vision.GetModel(model_pb2.GetModelRequest(tag=TAG))).model.num_parameters == 7
    assert [model.tag for model in (await run.vision.ListModels(model_pb2.ListModelsRequest())).models] == [TAG]
    await run.vision.UnloadModel(model_pb2.UnloadModelRequest(tag=TAG))
    assert not (await run.vision.ListModels(model_pb2.ListModelsRequest())).models


class HostMachine(RuleBasedStateMachine):
    """Any order of calls on two tags: a leased model is never closed, every other one in the end exactly once."""

    tags = st.sampled_from(["a-v1.0.0", "b-v1.0.0"])

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.run(self.begin())

    async def begin(self) -> None:
        self.host, self.loader, self.health = make()
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
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a refusal is an answer, too
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
    def release(self) -> None:
        async def give_back() -> None:
            self.leases.pop(0)[0].__exit__(None, None, None)

        self.run(give_back())

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
    def one_load_a_tag(self) -> None:
        waiting = [tag for tag, _ in self.loader.waiting]
        assert len(waiting) == len(set(waiting))

    @invariant()
    def health_says_ready_just_for_the_ready(self) -> None:
        for info in self.host.list():
            assert (serving(self.health, info.tag) == SERVING) == (info.state == model_pb2.MODEL_STATE_READY)

    @invariant()
    def open_models_are_just_those_of_the_table(self) -> None:
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
            await asyncio.wait_for(closing, 1)
            await asyncio.gather(*self.calls, return_exceptions=True)

        self.run(end())
        self.loop.close()
        assert all(model.num_closed == 1 for model in self.loader.made)
        assert self.host.list() == []


HostMachine.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=25, deadline=None)
TestHost = HostMachine.TestCase
