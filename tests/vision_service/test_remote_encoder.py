"""An image encoder whose backend is another process."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc
import pytest

from chassis.errors import Internal, Unavailable
from chassis.health import NOT_SERVING, SERVING, Health
from checkpoint.presets import RESAMPLER_PRESETS
from hosting import ModelHost, models
from processing import open_image_processor
from tests.vision_service.gated_backend import EncoderBench, bench, png, until
from tests.vision_service.triton_servicer import TritonServicer, export, serving
from vision_service.backends import TritonOptions
from vision_service.backends.triton_backend import TritonBackend, TritonModel
from vision_service.batcher import BatchConfig
from vision_service.image_encoder import EncodedImage, ImageRequest, RemoteImageEncoder, Source

CONFIG = RESAMPLER_PRESETS["tiny"]
TAG = "tiny-v1.0.0"
EXPORT = export()


@pytest.fixture
async def triton() -> AsyncIterator[tuple[TritonServicer, str]]:
    servicer = TritonServicer(EXPORT.digest, "1000000")
    async with serving(servicer) as address:
        yield servicer, address


def encoder_at(address: str, resources: EncoderBench) -> RemoteImageEncoder:
    backend = TritonBackend(CONFIG, EXPORT, TritonModel(name="tiny", version="1000000"), TritonOptions(address=address))
    return RemoteImageEncoder(
        tag=TAG,
        config=CONFIG,
        processor=open_image_processor(CONFIG),
        digest=bytes(32),
        backend=backend,
        resources=resources.resources,
        batching=BatchConfig(),
    )


@pytest.fixture
async def encoder(triton: tuple[TritonServicer, str]) -> AsyncIterator[RemoteImageEncoder]:
    async with bench() as local:
        encoder = encoder_at(triton[1], local)
        yield encoder
        await encoder.close()


async def ask(encoder: RemoteImageEncoder, colour: str) -> EncodedImage:
    image = png(colour)
    return await encoder.encode(ImageRequest(image=image, sha256=hashlib.sha256(image).digest()))


async def test_an_image_is_encoded_once_and_then_cached(
    triton: tuple[TritonServicer, str], encoder: RemoteImageEncoder
) -> None:
    first, again = await ask(encoder, "red"), await ask(encoder, "red")
    assert (first.source, again.source) == (Source.ENCODED, Source.CACHED)
    assert first.tokens == again.tokens
    assert first.forward_s > 0
    assert triton[0].num_started == 1
    assert encoder.info().backend == "triton"


async def test_tokens_that_are_not_finite_are_refused_and_not_cached(
    triton: tuple[TritonServicer, str], encoder: RemoteImageEncoder
) -> None:
    triton[0].factor = float("nan")
    with pytest.raises(Internal) as caught:
        await ask(encoder, "red")
    assert caught.value.reason == "NOT_FINITE"
    triton[0].factor = 1.0
    assert (await ask(encoder, "red")).source is Source.ENCODED


async def test_the_last_caller_to_leave_cancels_the_call(
    triton: tuple[TritonServicer, str], encoder: RemoteImageEncoder
) -> None:
    servicer = triton[0]
    servicer.gate.clear()
    callers = [asyncio.create_task(ask(encoder, "red")) for _ in range(2)]
    await until(lambda: servicer.num_started == 1)
    callers[0].cancel()
    await asyncio.sleep(0.05)
    assert servicer.num_cancelled == 0, "the other caller waits"
    callers[1].cancel()
    await until(lambda: servicer.num_cancelled == 1)


async def test_all_callers_of_an_image_get_one_failure(
    triton: tuple[TritonServicer, str], encoder: RemoteImageEncoder
) -> None:
    """None waits for the retries of the others."""
    servicer = triton[0]
    servicer.error = (grpc.StatusCode.UNAVAILABLE, "model is not ready")
    servicer.gate.clear()
    callers = [asyncio.create_task(ask(encoder, "red")) for _ in range(5)]
    await until(lambda: servicer.num_started == 1)
    servicer.gate.set()
    for caller in callers:
        with pytest.raises(Unavailable) as caught:
            await caller
        assert caught.value.reason == "TRITON_NOT_READY"
    assert servicer.num_started <= 4  # one call, with the retries of the channel


async def test_the_health_of_a_tag_follows_its_other_process(
    triton: tuple[TritonServicer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_WATCH_S", 0.01)
    servicer, health = triton[0], Health()
    async with bench() as local:

        async def load(_tag: str) -> RemoteImageEncoder:
            return encoder_at(triton[1], local)

        host = ModelHost(load=load, health=health, service_name="tandem.v1.VisionService")
        await host.load(TAG)

        def status() -> object:
            return health.status(f"tandem.v1.VisionService/{TAG}")

        assert status() == SERVING
        servicer.ready = False
        await until(lambda: status() == NOT_SERVING)
        servicer.ready = True
        await until(lambda: status() == SERVING)
        await host.close()
        assert status() == NOT_SERVING
