"""The client of Triton: types of tokens, shared memory, faults."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from chassis.errors import FailedPrecondition, Internal, ResourceExhausted, TandemError, Unavailable
from checkpoint.exports import export_folder, read_record
from checkpoint.presets import RESAMPLER_PRESETS
from processing import Pixels
from tests.vision_service.exports import checkpoint, exported
from tests.vision_service.triton_servicer import TritonServicer, export, serving, tokens_of
from vision_service.backends import BackendOptions, RemoteBackend, TritonOptions, open_backend
from vision_service.backends.triton_backend import TritonBackend, TritonModel, open_triton
from vision_service.remote_queue import RemoteQueue

CONFIG = RESAMPLER_PRESETS["tiny"]
VERSION = "1000000"


def pixels(count: int = 1) -> list[Pixels]:
    side = CONFIG.vision.image_size
    return list(np.random.default_rng(0).standard_normal((count, 3, side, side), np.float32))


def bits_of(tokens: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return bfloat16 bit patterns, rounded to nearest even."""
    bits = tokens.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32)


@pytest.fixture
async def triton() -> AsyncIterator[tuple[TritonServicer, str]]:
    servicer = TritonServicer(export().digest, VERSION)
    async with serving(servicer) as address:
        yield servicer, address


def backend_at(address: str, precision: str = "float32", **options: Any) -> TritonBackend:
    model = TritonModel(name="tiny", version=VERSION)
    return TritonBackend(CONFIG, export(precision), model, TritonOptions(address=address, **options))


@pytest.fixture
async def backend(triton: tuple[TritonServicer, str]) -> AsyncIterator[TritonBackend]:
    backend = backend_at(triton[1])
    yield backend
    await backend.close()


@pytest.mark.parametrize(("precision", "data_type"), [("float32", "FP32"), ("float16", "FP16"), ("bfloat16", "BF16")])
async def test_tokens_of_every_type_become_bfloat16(
    triton: tuple[TritonServicer, str], precision: str, data_type: str
) -> None:
    triton[0].data_type = data_type
    backend = backend_at(triton[1], precision)
    images = pixels(3)
    found = await backend.encode_async(images)
    exact = tokens_of(np.stack(images))
    if precision == "float32":
        np.testing.assert_array_equal(np.stack(found), bits_of(exact))
    for one, other in zip(found, exact, strict=True):
        values = (one.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(values, other, atol=0.05)
        one[0, 0] = 0  # a view of the message would be read-only
    await backend.close()


async def test_a_model_with_tokens_of_another_type_is_refused(
    triton: tuple[TritonServicer, str], backend: TritonBackend
) -> None:
    triton[0].data_type = "FP16"
    with pytest.raises(Internal) as caught:
        await backend.encode_async(pixels())
    assert caught.value.reason == "BAD_OUTPUT"


@pytest.mark.parametrize("num_missing_bytes", [4, 3])
async def test_an_answer_cut_short_is_refused(
    triton: tuple[TritonServicer, str], backend: TritonBackend, num_missing_bytes: int
) -> None:
    triton[0].num_missing_bytes = num_missing_bytes
    with pytest.raises(Internal) as caught:
        await backend.encode_async(pixels())
    assert caught.value.reason == "BAD_OUTPUT"


async def test_a_call_carries_version_timeout_and_request_id(
    triton: tuple[TritonServicer, str], backend: TritonBackend
) -> None:
    from chassis.request_id import bound_request_id

    with bound_request_id("some-id"):
        await backend.encode_async(pixels())
    [request] = triton[0].requests
    assert (request.model_name, request.model_version, request.id) == ("tiny", VERSION, "some-id")
    assert request.parameters["timeout"].int64_param == 30_000_000  # microseconds


async def test_shared_memory_is_reused_registered_anew_and_freed(triton: tuple[TritonServicer, str]) -> None:
    servicer, address = triton
    backend, images = backend_at(address, shared_memory="system"), pixels(4)
    for _ in range(3):
        np.testing.assert_array_equal(
            np.stack(await backend.encode_async(images[:1])), bits_of(tokens_of(np.stack(images[:1])))
        )
    assert len(servicer.regions) == 1
    assert not servicer.requests[0].raw_input_contents
    servicer.gate.clear()
    calls = [asyncio.create_task(backend.encode_async([image])) for image in images]
    while servicer.num_started < 7:  # noqa: ASYNC110 - the server counts
        await asyncio.sleep(0.001)
    servicer.gate.set()
    for call, image in zip(calls, images, strict=True):
        np.testing.assert_array_equal((await call)[0], bits_of(tokens_of(image[None]))[0])
    assert len(servicer.regions) == 4, "each call in flight has a region of its own"
    keys = set(servicer.regions.values())
    servicer.regions.clear()  # as if Triton was restarted
    together = await asyncio.gather(*(backend.encode_async([image]) for image in images))
    for [one], image in zip(together, images, strict=True):
        np.testing.assert_array_equal(one, bits_of(tokens_of(image[None]))[0])
    assert set(servicer.regions.values()) == keys
    await backend.close()
    assert not servicer.regions
    assert not keys & set(os.listdir("/dev/shm"))  # names only


async def test_readiness_and_the_export_are_checked(triton: tuple[TritonServicer, str], backend: TritonBackend) -> None:
    servicer = triton[0]
    await backend.check()
    servicer.ready = False
    with pytest.raises(Unavailable) as not_ready:
        await backend.check()
    assert not_ready.value.reason == "TRITON_NOT_READY"
    servicer.digest = bytes(32)
    with pytest.raises(FailedPrecondition) as other:
        await backend.check()
    assert other.value.reason == "TRITON_OTHER_EXPORT"


async def test_another_thread_opens_the_backend_on_the_loop(triton: tuple[TritonServicer, str]) -> None:
    options = BackendOptions(
        precision="float32", triton=TritonOptions(address=triton[1], model="tiny"), loop=asyncio.get_running_loop()
    )
    backend = await asyncio.to_thread(open_triton, CONFIG, "any-v1.0.0", export(), options)
    [tokens] = await asyncio.to_thread(backend.encode, pixels())
    assert tokens.shape == (32, 64)
    assert isinstance(backend, RemoteBackend)
    await backend.close()
    with pytest.raises(FailedPrecondition) as caught:
        open_triton(CONFIG, "any-v1.0.0", export(), BackendOptions())
    assert caught.value.reason == "UNSUPPORTED"


async def test_a_service_needs_the_record_of_the_export_only(tmp_path: Path) -> None:
    """The weights are in Triton's repository."""
    exported("resampler", "onnx", "float32")
    source = checkpoint("resampler")
    folder = Path(copytree(source, tmp_path / source.name, ignore=ignore_patterns("model.onnx*", "*.safetensors")))
    record = read_record(export_folder(folder, "onnx", "float32"))
    async with serving(TritonServicer(record.digest, VERSION)) as address:
        options = BackendOptions(
            precision="float32", triton=TritonOptions(address=address), loop=asyncio.get_running_loop()
        )
        opened = await asyncio.to_thread(open_backend, "triton", folder, options)
        assert isinstance(opened.backend, TritonBackend)
        assert opened.backend.export_digest == record.digest
        [tokens] = await opened.backend.encode_async(pixels())
        assert tokens.shape == (32, 64)
        await opened.backend.close()


async def test_the_queue_limits_calls_and_passes_on_cancellation(
    triton: tuple[TritonServicer, str], backend: TritonBackend
) -> None:
    servicer, queue, [image] = triton[0], RemoteQueue(backend, max_in_flight=2), pixels()
    servicer.gate.clear()
    calls = [asyncio.create_task(queue.submit(image)) for _ in range(2)]
    while servicer.num_started < 2:  # noqa: ASYNC110 - the server counts
        await asyncio.sleep(0.001)
    assert queue.num_waiting == 2
    with pytest.raises(ResourceExhausted) as caught:
        await queue.submit(image)
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_after_s
    calls[0].cancel()
    while servicer.num_cancelled < 1:  # noqa: ASYNC110 - the server counts
        await asyncio.sleep(0.001)
    servicer.gate.set()
    result = await calls[1]
    assert (result.batch_size, queue.num_waiting) == (1, 0)
    assert result.run_s > 0


async def test_a_closed_queue_fails_its_calls_as_draining(
    triton: tuple[TritonServicer, str], backend: TritonBackend
) -> None:
    servicer, queue, [image] = triton[0], RemoteQueue(backend, max_in_flight=2), pixels()
    servicer.gate.clear()
    call = asyncio.create_task(queue.submit(image))
    while servicer.num_started < 1:  # noqa: ASYNC110 - the server counts
        await asyncio.sleep(0.001)
    await queue.close()
    for submitted in (call, asyncio.create_task(queue.submit(image))):
        with pytest.raises(Unavailable) as caught:
            await submitted
        assert caught.value.reason == "MODEL_DRAINING"


async def test_the_queue_translates_unexpected_errors(backend: TritonBackend) -> None:
    """A call on a closed channel is a bug."""
    await backend.close()
    with pytest.raises(Internal) as caught:
        await RemoteQueue(backend, max_in_flight=2).submit(pixels()[0])
    assert caught.value.reason == "ENCODER_FAILED"


async def test_an_error_of_triton_reaches_the_caller_of_the_queue(
    triton: tuple[TritonServicer, str], backend: TritonBackend
) -> None:
    triton[0].error = (grpc.StatusCode.INTERNAL, "a secret")
    with pytest.raises(TandemError) as caught:
        await RemoteQueue(backend, max_in_flight=2).submit(pixels()[0])
    assert caught.value.reason == "TRITON_FAILED"
