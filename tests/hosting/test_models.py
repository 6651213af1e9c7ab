"""Loading, leasing and unloading models, and the model RPCs."""

import asyncio
from typing import Any

import pytest

from chassis.errors import DataLoss, FailedPrecondition, Internal, InvalidArgument, NotFound, TandemError, Unavailable
from chassis.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING
from chassis.vital import on_death
from hosting import models
from hosting.models import ModelCalls
from tandem.v1 import model_pb2
from tests.hosting.hosted import TAG, Model, loaded, make_host, serving, settle


async def test_concurrent_callers_share_one_load() -> None:
    host, loader, health = make_host()
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
    assert (await host.load(TAG)).tag == TAG  # a ready model is not loaded again
    assert len(loader.made) == 1


async def test_cancelling_one_caller_does_not_stop_the_load_of_others() -> None:
    host, loader, _ = make_host()
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
async def test_a_failed_load_stays_listed_and_can_be_retried(
    raised: Exception, kind: type[TandemError], reason: str
) -> None:
    host, loader, health = make_host()
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
    with pytest.raises(FailedPrecondition, match=caught.value.message.removesuffix(".")) as failed, host.lease(TAG):
        pass
    assert (failed.value.reason, "/secret" in failed.value.message) == ("MODEL_FAILED", False)
    assert (await loaded(host, loader)).state == model_pb2.MODEL_STATE_READY
    assert serving(health) == SERVING


@pytest.mark.parametrize("error", [NotFound("None.", reason="UNKNOWN_TAG"), InvalidArgument("No.", reason="BAD_TAG")])
async def test_an_unknown_tag_is_not_listed_as_failed(error: TandemError) -> None:
    """Otherwise invented tags would fill ListModels and the health."""
    host, loader, health = make_host()
    loading = asyncio.create_task(host.load(TAG))
    await settle()
    loader.finish(error)
    with pytest.raises(type(error)):
        await loading
    assert host.list() == []
    assert serving(health) == SERVICE_UNKNOWN
    with pytest.raises(NotFound):
        host.get(TAG)


async def test_unloading_waits_for_the_last_lease_and_refuses_new_ones() -> None:
    host, loader, health = make_host()
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
    host, loader, _ = make_host()
    await loaded(host, loader)
    with pytest.raises(ZeroDivisionError), host.lease(TAG):
        raise ZeroDivisionError
    await asyncio.wait_for(host.unload(TAG), 20)


async def test_unloading_waits_for_a_load_in_flight() -> None:
    host, loader, _ = make_host()
    loading = asyncio.create_task(host.load(TAG))
    await settle()
    unloading = asyncio.create_task(host.unload(TAG))
    await settle()
    loader.finish()
    await asyncio.gather(loading, unloading)
    assert loader.made[0].num_closed == 1
    assert host.list() == []


async def test_closing_unloads_all_models_and_refuses_new_loads() -> None:
    host, loader, _ = make_host()
    await loaded(host, loader)
    await loaded(host, loader, "other-v1.0.0")
    await host.close()
    assert [model.num_closed for model in loader.made] == [1, 1]
    with pytest.raises(Unavailable):
        await host.load(TAG)


async def test_closing_cancels_a_load_in_flight() -> None:
    """It may wait for another machine without end."""
    host, loader, health = make_host()
    loads = [asyncio.create_task(host.load(tag)) for tag in (TAG, TAG, "other-v1.0.0")]
    await settle()
    late = asyncio.create_task(host.load("late-v1.0.0"))
    await asyncio.sleep(0)
    await asyncio.wait_for(host.close(), 20)
    for load in (*loads, late):
        with pytest.raises(Unavailable) as caught:
            await load
        assert caught.value.reason == "STOPPING"
    assert host.list() == []
    assert loader.made == []
    assert serving(health) == NOT_SERVING


async def test_a_model_that_fails_to_close_is_still_removed() -> None:
    host, loader, _ = make_host()
    await loaded(host, loader)
    loader.made[0].close = fail_to_close  # type: ignore[method-assign]
    await host.unload(TAG)
    assert host.list() == []


async def test_a_watch_that_dies_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its health would never change again."""
    ended: list[bool] = []
    on_death(lambda: ended.append(True))
    monkeypatch.setattr(models, "_WATCH_S", 0)
    monkeypatch.setattr(Model, "is_ready", fail_to_close, raising=False)
    try:
        host, loader, _ = make_host()
        await loaded(host, loader)
        await settle()
        assert ended == [True]
        await host.close()
    finally:
        on_death(None)


async def fail_to_close(model: Model | None = None) -> None:
    raise RuntimeError("stuck")


async def test_the_model_rpcs_use_the_host(serve: Any) -> None:
    host, loader, _ = make_host()

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


async def test_the_error_for_a_missing_model_lists_the_loaded_ones() -> None:
    host, loader, _ = make_host()
    with pytest.raises(NotFound, match=r"no model of that tag: load it\."):
        host.get("other-v1.0.0")
    await loaded(host, loader)
    with pytest.raises(NotFound, match=f"load it, or use {TAG}"):
        host.get("other-v1.0.0")
