"""Load a language half from a store, and close it."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from chassis.errors import FailedPrecondition, NotFound
from checkpoint.config import read_config
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.quantizing import NearestRounder, plan, quantize
from checkpoint.rounding import Grid
from checkpoint.store import ModelStore
from language_service import loader
from language_service.engine import own
from language_service.engine.interface import EngineConfig, Finished
from language_service.kernels import decode_choice
from language_service.loader import LanguageLoader
from language_service.sampling.options import SamplingOptions
from language_service.scheduling.scheduler import SchedulerConfig

TAG = "tiny-v1.0.0"
CONTEXT = RESAMPLER_PRESETS["tiny"].language.context_length


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    create_checkpoint(root, TAG, RESAMPLER_PRESETS["tiny"])
    return root


def make_loader(models: Path, **fields: Any) -> LanguageLoader:
    fields = {
        "dtype": torch.float32,
        "scheduling": SchedulerConfig(block_size=16, max_running=2, max_waiting=2, max_step_tokens=32),
        "cache_bytes": None,
        "cache_fraction": 0.01,
        **fields,
    }
    return LanguageLoader(
        store=ModelStore(models),
        engine="tandem",
        config=EngineConfig(device=torch.device("cpu"), **fields),
        max_images=2,
        default_max_tokens=8,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_a_loaded_model_answers_and_frees_its_memory(models: Path, dtype: torch.dtype) -> None:
    hosted = await make_loader(models, dtype=dtype).load(TAG)
    assert hosted.info().num_weight_bytes == dtype.itemsize * hosted.info().num_parameters
    generation = hosted.engine.open(SamplingOptions(ignore_eos=True), salt=b"", priority=0)
    generation.add_text([7, 8, 9])
    generation.end_prompt(4)
    events = [event async for event in generation]
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.num_answer == 4
    await hosted.close()
    engine = weakref.ref(hosted.engine)
    del hosted, generation
    gc.collect()
    assert engine() is None


async def test_the_cache_is_no_larger_than_all_sequences_can_fill(models: Path) -> None:
    hosted = await make_loader(models).load(TAG)
    assert hosted.info().language.num_blocks == 2 * CONTEXT // 16
    await hosted.close()


async def test_the_cache_takes_its_fraction_of_the_available_memory(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log and description report its size."""
    per_block = 16 * 2 * 2 * 2 * 16 * 4
    monkeypatch.setattr(own, "available_bytes", lambda _device: 83 * per_block)
    with capture_logs() as logs:
        hosted = await make_loader(models, cache_fraction=0.25).load(TAG)
    (line,) = (each for each in logs if each["event"] == "kv cache ready")
    assert (line["num_blocks"], line["num_tokens"], line["num_bytes"]) == (20, 320, 20 * per_block)
    language = hosted.info().language
    assert (language.num_blocks, language.block_size, language.num_cache_bytes) == (20, 16, 20 * per_block)
    await hosted.close()


async def test_a_cache_larger_than_the_available_memory_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "available_bytes", lambda _device: 1000)
    with pytest.raises(FailedPrecondition, match="raise the memory limit") as caught:
        await make_loader(models, cache_bytes=2**20).load(TAG)
    assert caught.value.reason == "NO_MEMORY"


async def test_a_cache_smaller_than_the_context_limits_the_context(models: Path) -> None:
    """A prompt that needs more blocks would wait forever."""
    per_block = 16 * 2 * 2 * 2 * 16 * 4
    hosted = await make_loader(models, cache_bytes=10 * per_block + 7).load(TAG)
    assert hosted.info().language.num_blocks == 10
    assert hosted.info().language.context_length == hosted.limits.context_length == 160
    await hosted.close()


async def test_a_failed_load_raises_the_cause(models: Path) -> None:
    with pytest.raises(NotFound):
        await make_loader(models).load("other-v1.0.0")
    with pytest.raises(FailedPrecondition, match="no room for one block"):
        await make_loader(models, cache_bytes=1000).load(TAG)


async def test_attention_that_cannot_run_here_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_choice, "find_spec", lambda _name: None)
    with pytest.raises(FailedPrecondition, match="choose --decode-attention torch") as caught:
        await make_loader(models, decode_attention="triton").load(TAG)
    assert caught.value.reason == "NO_KERNEL"


async def test_an_unreadable_tokenizer_leaves_no_engine_behind(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "read_verified", lambda *_: b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await make_loader(models).load(TAG)
    assert f"engine-{TAG}" not in [thread.name for thread in threading.enumerate()]


async def test_a_model_with_4_bits_answers_in_less_memory(models: Path, tmp_path: Path) -> None:
    tag = "tiny-int4-v1.0.0"
    config = plan(read_config(models / TAG), "w4a16", 32)
    quantize(models / TAG, tmp_path, tag, config, NearestRounder(Grid("w4a16", 32)))
    hosted = await make_loader(tmp_path, dtype=torch.bfloat16).load(tag)
    source = await make_loader(models, dtype=torch.bfloat16).load(TAG)
    assert hosted.info().precision == "w4a16 g32"
    assert source.info().precision == "bfloat16"
    assert hosted.info().num_weight_bytes < 0.75 * source.info().num_weight_bytes
    generation = hosted.engine.open(SamplingOptions(ignore_eos=True), salt=b"", priority=0)
    generation.add_text([7, 8, 9])
    generation.end_prompt(4)
    events = [event async for event in generation]
    assert isinstance(events[-1], Finished)
    for one in (hosted, source):
        await one.close()
