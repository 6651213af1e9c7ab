"""A service chooses its backend when it loads a model."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
from structlog.testing import capture_logs

from chassis.errors import DataLoss, FailedPrecondition, NotFound, TandemError
from chassis.settings import load_settings
from checkpoint.backend_choice import BackendChoice, write_choice
from checkpoint.initial import create_checkpoint
from checkpoint.manifest import read_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from tests.vision_service.exports import TAGS, checkpoint, exported
from vision_service.backends import BackendName, BackendOptions
from vision_service.batcher import BatchConfig
from vision_service.decode_pool import DecodePool
from vision_service.exporting import choose_backend
from vision_service.image_encoder import SharedResources
from vision_service.image_reader import ImageLimits
from vision_service.loader import VisionLoader
from vision_service.service import VisionSettings
from vision_service.token_cache import TokenCache

TAG = TAGS["resampler"]
OPTIONS = BackendOptions(precision="float32")


@pytest.fixture
def resources() -> Iterator[SharedResources]:
    pool = DecodePool(num_processes=1, max_pending=4, limits=ImageLimits())
    with ThreadPoolExecutor(1) as executor:
        yield SharedResources(
            decode_pool=pool,
            forward_executor=executor,
            forward_lock=asyncio.Lock(),
            cache=TokenCache(max_bytes=0, ttl_s=None),
        )
    pool.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with a checkpoint and its ONNX export."""
    exported("resampler", "onnx", "float32")
    copytree(checkpoint("resampler"), tmp_path / TAG, ignore=ignore_patterns("onnx-bf*", "onnx-float16", "openvino-*"))
    return tmp_path


Load = Callable[..., "asyncio.Future[tuple[str, bytes]]"]


@pytest.fixture
def load(resources: SharedResources) -> Load:
    async def load(store: Path, *names: BackendName, options: BackendOptions = OPTIONS) -> tuple[str, bytes]:
        """Load the model, and return its backend and encoder id."""
        loader = VisionLoader(
            store=ModelStore(store), backends=names, options=options, batching=BatchConfig(), resources=resources
        )
        encoder = await loader.load(TAG)
        backend = encoder.info().backend
        await encoder.close()
        return backend, encoder.encoder_id

    return load  # type: ignore[return-value]


async def test_no_visual_token_crosses_backends(load: Load, store: Path) -> None:
    """Each backend has an encoder id of its own."""
    by_torch, by_onnx = await load(store, "torch"), await load(store, "onnxruntime")
    assert (by_torch[0], by_onnx[0]) == ("torch", "onnxruntime")
    assert by_torch[1] != by_onnx[1]
    assert await load(store, "onnxruntime") == by_onnx


async def test_the_first_usable_backend_of_the_list_is_taken(load: Load, store: Path) -> None:
    with capture_logs() as logs:
        assert (await load(store, "openvino", "onnxruntime", "torch"))[0] == "onnxruntime"
    [line] = [line for line in logs if line["event"] == "backend not used"]
    assert (line["backend"], line["reason"], line["tag"]) == ("openvino", "NO_EXPORT", TAG)


async def test_without_a_list_there_is_no_fallback(load: Load, store: Path) -> None:
    with pytest.raises(NotFound, match="tandem checkpoint export") as caught:
        await load(store, "openvino")
    assert caught.value.reason == "NO_EXPORT"


def place(store: Path) -> Path:
    return store / TAG / "exports" / "onnx-float32"


def cut(store: Path) -> None:
    os.truncate(place(store) / "model.onnx", 100)


def replace_weights(store: Path) -> None:
    """Put the export beside a checkpoint of other weights."""
    exports = (store / TAG / "exports").rename(store / "exports")
    (store / TAG).rename(store / "old")
    create_checkpoint(store, TAG, RESAMPLER_PRESETS["tiny"], seed=5, dtype=torch.float32)
    exports.rename(store / TAG / "exports")


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [(cut, DataLoss, "DIGEST_MISMATCH"), (replace_weights, FailedPrecondition, "BAD_EXPORT")],
)
async def test_a_damaged_export_is_refused_or_replaced(
    damage: Callable[[Path], None], error: type[TandemError], reason: str, load: Load, store: Path
) -> None:
    damage(store)
    with pytest.raises(error) as caught:
        await load(store, "onnxruntime")
    assert caught.value.reason == reason
    assert (await load(store, "onnxruntime", "torch"))[0] == "torch"


async def test_a_damaged_checkpoint_has_no_fallback(load: Load, store: Path) -> None:
    (store / TAG / "config.json").write_text("{}")
    with pytest.raises(DataLoss):
        await load(store, "onnxruntime", "torch")


async def test_auto_takes_the_recorded_backend(load: Load, store: Path) -> None:
    with pytest.raises(NotFound, match="choose-backend"):
        await load(store)
    folder = store / TAG
    choice = choose_backend(folder, ["torch", "onnxruntime", "openvino"], OPTIONS, rounds=2)
    assert choice.images_per_s.keys() == {"torch", "onnxruntime"}
    assert choice.images_per_s[choice.backend] == max(choice.images_per_s.values())
    assert "no export" in choice.skipped["openvino"]
    for backend in ("onnxruntime", "torch"):
        write_choice(choice.model_copy(update={"backend": backend}), folder, replace=True)
        assert (await load(store))[0] == backend


async def test_a_recorded_backend_that_is_unknown_here_is_refused(load: Load, store: Path) -> None:
    choice = BackendChoice(
        vision_digest=read_manifest(store / TAG).vision.digest,
        device_type="cpu",
        device="a newer machine",
        precision="float32",
        backend="newer",
        images_per_s={"newer": 1.0},
    )
    write_choice(choice, store / TAG)
    with pytest.raises(FailedPrecondition, match="is unknown here"):
        await load(store)


def test_no_backend_to_choose_from_is_an_error(store: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no export for openvino") as caught:
        choose_backend(store / TAG, ["openvino"], OPTIONS)
    assert caught.value.reason == "NO_BACKEND"


def settings(*flags: str) -> VisionSettings:
    return load_settings(VisionSettings, ["--models", "models", *flags])


def test_backends_are_a_list_in_order_of_preference() -> None:
    assert settings().backends == ("torch",)
    assert settings("--backend", "openvino,torch").backends == ("openvino", "torch")
    assert settings("--backend", "auto").backends == ()


@pytest.mark.parametrize("value", ["cudnn", "torch,torch", "auto,torch", ","])
def test_a_wrong_list_of_backends_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--backend", value)
    assert "--backend (TANDEM_VISION_BACKEND): choose auto, or some of torch" in capsys.readouterr().err
