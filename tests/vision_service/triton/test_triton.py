"""Encoding on a real Triton: versions, batches, faults."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from chassis.errors import DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from chassis.tensors import is_finite_bfloat16
from tests.vision_service.exports import floats
from tests.vision_service.triton.conftest import Connect
from tests.vision_service.triton.repository import OTHER_TAG, OTHER_VERSION, TAG, VERSION, Repository
from tests.vision_service.triton.server import TritonServer

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]


async def until(condition: Path, timeout_s: float = 10) -> None:
    """Wait until a file exists."""
    async with asyncio.timeout(timeout_s):
        while not condition.exists():  # noqa: ASYNC110, ASYNC240 - another process makes the file
            await asyncio.sleep(0.01)


async def test_each_version_returns_the_tokens_of_its_own_weights(repository: Repository, connect: Connect) -> None:
    images, found = repository.pixels(3), {}
    for tag in (TAG, OTHER_TAG):
        backend = await connect(tag)
        found[tag] = await backend.encode_async(images)
        local = repository.local_backend(tag)
        for one, exact in zip(found[tag], local.encode(images), strict=True):
            np.testing.assert_allclose(floats(one), floats(exact), atol=0.01 * np.abs(floats(exact)).max())
        assert (backend.precision, backend.num_parameters) == (local.precision, local.num_parameters)
        assert backend.export_digest == local.export_digest
    assert not np.array_equal(found[TAG][0], found[OTHER_TAG][0])


async def test_the_results_share_no_memory(repository: Repository, connect: Connect) -> None:
    first, second = await (await connect()).encode_async(repository.pixels(2))
    first[:] = 0
    assert second.any()
    assert first.flags.writeable


async def test_calls_that_arrive_together_share_a_run(
    repository: Repository, server: TritonServer, connect: Connect
) -> None:
    backend, images = await connect(), repository.pixels(16)
    images_before, runs_before = server.statistics("tiny", VERSION)
    found = await asyncio.gather(*(backend.encode_async([image]) for image in images))
    images_after, runs_after = server.statistics("tiny", VERSION)
    assert images_after - images_before == 16
    assert 2 <= runs_after - runs_before <= 8  # of at most 8 images each
    for [one], exact in zip(found, repository.local_backend(TAG).encode(images), strict=True):
        np.testing.assert_allclose(floats(one), floats(exact), atol=0.01 * np.abs(floats(exact)).max())


@pytest.mark.parametrize("tag", [TAG, OTHER_TAG])
async def test_shared_memory_changes_no_bit(repository: Repository, connect: Connect, tag: str) -> None:
    plain, shared = await connect(tag), await connect(tag, shared_memory="system")
    for count in (1, 4, 1):
        images = repository.pixels(count)
        for one, other in zip(await plain.encode_async(images), await shared.encode_async(images), strict=True):
            np.testing.assert_array_equal(one, other)
    images = repository.pixels(12)
    together = await asyncio.gather(*(shared.encode_async([image]) for image in images))
    for [one], image in zip(together, images, strict=True):
        [alone] = await plain.encode_async([image])
        np.testing.assert_allclose(floats(one), floats(alone), atol=0.01 * np.abs(floats(alone)).max())


async def test_encode_runs_in_a_thread_beside_the_loop(repository: Repository, connect: Connect) -> None:
    backend, images = await connect(), repository.pixels(1)
    [one], [other] = await asyncio.to_thread(backend.encode, images), await backend.encode_async(images)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("names", [{"version": "7000000"}, {"model": "unknown"}], ids=["version", "model"])
async def test_a_missing_version_or_model_is_named_as_the_cause(connect: Connect, names: dict[str, str]) -> None:
    with pytest.raises(Unavailable, match="tandem checkpoint export") as caught:
        await connect(**names)
    assert caught.value.reason == "TRITON_NO_VERSION"


async def test_a_version_of_another_export_is_refused(connect: Connect) -> None:
    with pytest.raises(FailedPrecondition, match="runs another export") as caught:
        await connect(TAG, version=OTHER_VERSION)
    assert caught.value.reason == "TRITON_OTHER_EXPORT"


async def test_a_model_that_is_unloaded_is_not_ready_until_it_is_loaded_again(
    repository: Repository, server: TritonServer, connect: Connect
) -> None:
    backend, images = await connect(), repository.pixels(1)
    [before] = await backend.encode_async(images)
    await asyncio.to_thread(server.unload, "tiny")
    try:
        assert not await backend.is_ready()
        with pytest.raises(Unavailable) as caught:
            await backend.encode_async(images)
        assert caught.value.reason in ("TRITON_NOT_READY", "TRITON_NO_VERSION")
        assert caught.value.retry_after_s
    finally:
        await asyncio.to_thread(server.load, "tiny")
    assert await backend.is_ready()
    np.testing.assert_array_equal((await backend.encode_async(images))[0], before)


@pytest.mark.parametrize("model", ["narrow", "other-type"])
async def test_tokens_of_a_wrong_shape_or_type_are_refused(
    repository: Repository, connect: Connect, model: str
) -> None:
    backend, good = await connect(model=model), await connect()
    with pytest.raises(Internal) as caught:
        await backend.encode_async(repository.pixels(1))
    assert caught.value.reason == "BAD_OUTPUT"
    assert len(await good.encode_async(repository.pixels(1))) == 1


async def test_tokens_that_are_not_finite_arrive_as_such(repository: Repository, connect: Connect) -> None:
    """The image encoder refuses them, from any backend."""
    [tokens] = await (await connect(model="not-finite")).encode_async(repository.pixels(1))
    assert not is_finite_bfloat16(tokens)


async def test_the_text_of_a_failing_model_stays_in_the_log(repository: Repository, connect: Connect) -> None:
    backend = await connect(model="failing")
    with pytest.raises(Internal) as caught:
        await backend.encode_async(repository.pixels(1))
    assert caught.value.reason == "TRITON_FAILED"
    assert "secret" not in caught.value.message


async def test_a_cancelled_call_is_cancelled_in_triton(repository: Repository, connect: Connect) -> None:
    backend, good = await connect(model="slow"), await connect()
    call = asyncio.create_task(backend.encode_async(repository.pixels(1)))
    folder = repository.folder / "slow" / VERSION
    await until(folder / "started")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(folder / "cancelled")
    (folder / "started").unlink()
    (folder / "cancelled").unlink()
    assert len(await good.encode_async(repository.pixels(1))) == 1


async def test_a_call_that_takes_too_long_fails_and_ends_in_triton(repository: Repository, connect: Connect) -> None:
    backend, started_s = await connect(model="slow", timeout_s=0.5), time.perf_counter()
    with pytest.raises(DeadlineExceeded) as caught:
        await backend.encode_async(repository.pixels(1))
    assert caught.value.reason == "TRITON_TIMEOUT"
    assert time.perf_counter() - started_s < 5
    folder = repository.folder / "slow" / VERSION
    await until(folder / "cancelled")
    (folder / "started").unlink()
    (folder / "cancelled").unlink()


async def test_a_triton_that_cannot_be_reached_is_named_as_the_cause(connect: Connect) -> None:
    with pytest.raises(Unavailable) as caught:
        await connect(address="127.0.0.1:1")
    assert caught.value.reason == "TRITON_UNREACHABLE"
    assert "127.0.0.1" not in caught.value.message
