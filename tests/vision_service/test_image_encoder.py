"""A vision half is loaded, batched, and rejected if broken."""

import asyncio
import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from chassis.errors import FailedPrecondition, Internal, NotFound
from checkpoint.exports import Precision
from checkpoint.initial import RandomTensors, create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.saving import save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import byte_tokenizer
from checkpoint.weights import load_half
from processing.image_processors import open_image_processor
from vision_service.backends import BackendOptions
from vision_service.backends.torch_backend import TorchBackend
from vision_service.batcher import BatchConfig
from vision_service.decode_pool import DecodePool
from vision_service.image_encoder import EncodedImage, ImageEncoder, ImageRequest, SharedResources
from vision_service.image_reader import ImageLimits, read_image
from vision_service.loader import VisionLoader
from vision_service.model.encoder import VisionHalf
from vision_service.token_cache import TokenCache, VisualTokens

TAG = "tiny-v1.0.0"
TINY = RESAMPLER_PRESETS["tiny"]
PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
BATCHING = BatchConfig(max_batch_size=4, max_wait_s=0.05)


def png(colour: str) -> bytes:
    """Return an image of one colour, or a grey 'gradient'."""
    image = Image.linear_gradient("L") if colour == "gradient" else Image.new("RGB", (40, 30), colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def floats(tokens: VisualTokens) -> NDArray[np.float32]:
    bits = torch.frombuffer(bytearray(tokens.data), dtype=torch.bfloat16)
    return np.asarray(bits.float().numpy().reshape(tokens.shape))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    root = tmp_path_factory.mktemp("models")
    create_checkpoint(root, TAG, TINY, seed=1)
    return ModelStore(root)


@pytest.fixture
def resources() -> Iterator[SharedResources]:
    decode_pool = DecodePool(num_processes=2, max_pending=64, limits=ImageLimits())
    with ThreadPoolExecutor(1) as executor:
        cache = TokenCache(max_bytes=0, ttl_s=None)  # so that every image is encoded
        yield SharedResources(
            decode_pool=decode_pool, forward_executor=executor, forward_lock=asyncio.Lock(), cache=cache
        )
    decode_pool.close()


def loader(
    store: ModelStore, resources: SharedResources, dtype: torch.dtype = torch.float32, batching: BatchConfig = BATCHING
) -> VisionLoader:
    return VisionLoader(
        store=store,
        backends=("torch",),
        options=BackendOptions(precision=PRECISIONS[dtype]),
        batching=batching,
        resources=resources,
    )


async def encode(model: ImageEncoder, data: bytes) -> NDArray[np.float32]:
    return floats((await ask(model, data)).tokens)


async def ask(model: ImageEncoder, data: bytes) -> EncodedImage:
    return await model.encode(ImageRequest(image=data, sha256=hashlib.sha256(data).digest()))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0.005), (torch.float16, 0.01), (torch.bfloat16, 0.05)]
)
async def test_the_encoder_computes_the_same_as_the_plain_model(
    store: ModelStore, resources: SharedResources, dtype: torch.dtype, tolerance: float
) -> None:
    model = await loader(store, resources, dtype).load(TAG)
    half = VisionHalf(TINY)
    half.load_state_dict(load_half(store.folder(TAG), "vision", dtype=torch.float32).tensors)
    data = png("gradient")
    pixels = torch.from_numpy(open_image_processor(TINY).to_pixels(read_image(data, ImageLimits())))
    with torch.inference_mode():
        expected = half(pixels.unsqueeze(0))[0].numpy()
    tokens = await encode(model, data)
    assert tokens.shape == (TINY.num_visual_tokens, TINY.language.width)
    assert np.abs(tokens - expected).max() <= tolerance * np.abs(expected).max()
    await model.close()


async def test_an_image_has_the_same_tokens_alone_and_in_a_batch(store: ModelStore, resources: SharedResources) -> None:
    """Otherwise an answer would depend on other requests."""
    single = await loader(store, resources).load(TAG)
    patient = await loader(store, resources, batching=BatchConfig(max_batch_size=4, max_wait_s=60)).load(TAG)
    images = [png(colour) for colour in ("red", "gradient", "navy", "white")]
    alone = [await encode(single, data) for data in images]
    encoded = await asyncio.gather(*(ask(patient, data) for data in images))
    assert {one.batch_size for one in encoded} == {4}
    for one, other in zip(alone, encoded, strict=True):
        np.testing.assert_allclose(floats(other.tokens), one, atol=0.01 * np.abs(one).max())  # one step of bfloat16
    assert np.abs(alone[0] - alone[1]).max() > 0.02 * np.abs(alone[0]).max()  # different images do differ
    await single.close()
    await patient.close()


async def test_the_encoder_id_depends_on_weights_and_precision(
    store: ModelStore, resources: SharedResources, tmp_path: Path
) -> None:
    create_checkpoint(tmp_path, TAG, TINY, seed=2)
    models = [
        await loader(store, resources).load(TAG),
        await loader(store, resources, torch.bfloat16).load(TAG),
        await loader(ModelStore(tmp_path), resources).load(TAG),
    ]
    assert len({model.encoder_id for model in models}) == 3
    assert models[0].digest == models[1].digest != models[2].digest
    again = await loader(store, resources).load(TAG)
    assert again.encoder_id == models[0].encoder_id
    for model in (*models, again):
        await model.close()


async def test_info_reports_the_counted_parameters(store: ModelStore, resources: SharedResources) -> None:
    model = await loader(store, resources, torch.bfloat16).load(TAG)
    info = model.info()
    count = sum(parameter.numel() for parameter in VisionHalf(TINY).parameters())
    assert (info.num_parameters, info.num_weight_bytes) == (count, 2 * count)
    assert (info.backend, info.device, info.precision) == ("torch", "cpu", "bfloat16")
    assert (info.vision.num_visual_tokens, info.vision.token_width) == (32, 64)
    assert info.vision.encoder_id == model.encoder_id
    assert (info.vision.max_batch_size, info.vision.max_wait_ms, info.vision.max_queue) == (4, 50, 256)
    assert info.vision.max_cache_bytes == 0
    await model.close()


async def test_an_unknown_tag_is_not_found(store: ModelStore, resources: SharedResources) -> None:
    with pytest.raises(NotFound) as caught:
        await loader(store, resources).load("other-v1.0.0")
    assert caught.value.reason == "UNKNOWN_TAG"


async def test_weights_with_infinite_results_do_not_load(resources: SharedResources, tmp_path: Path) -> None:
    tensors = dict(RandomTensors(TINY, seed=0, dtype=torch.bfloat16))
    tensors["perceiver_resampler.proj.weight"][0, 0] = float("nan")
    with ModelStore(tmp_path).create(TAG) as folder:
        save(folder, TINY, tensors, TAG, tokenizer_json=byte_tokenizer().to_str())
    with pytest.raises(FailedPrecondition) as caught:
        await loader(ModelStore(tmp_path), resources).load(TAG)
    assert caught.value.reason == "BAD_CHECKPOINT"


async def test_tokens_that_are_not_finite_are_never_returned(store: ModelStore, resources: SharedResources) -> None:
    """Only the bad image of a batch fails."""
    half = load_half(store.folder(TAG), "vision", dtype=torch.float32)

    class Overflowing(TorchBackend):
        """A backend that overflows on bright images."""

        def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
            tokens = super().encode(images)
            for pixels, bits in zip(images, tokens, strict=True):
                if pixels.mean() > 1:
                    bits[3, 5] = 0x7F80  # infinity
            return tokens

    backend = Overflowing(half.config, half.tensors, dtype=torch.float32, device=torch.device("cpu"))
    encoder = ImageEncoder(
        tag=TAG,
        config=half.config,
        processor=open_image_processor(half.config),
        digest=half.digest,
        backend=backend,
        resources=resources,
        batching=BATCHING,
    )
    fine, bright = await asyncio.gather(
        encode(encoder, png("black")), encode(encoder, png("white")), return_exceptions=True
    )
    assert isinstance(fine, np.ndarray)
    assert isinstance(bright, Internal)
    assert bright.reason == "NOT_FINITE"
    await encoder.close()
