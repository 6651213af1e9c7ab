"""A language half from the model store to a running engine and back."""

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from chassis.errors import FailedPrecondition, NotFound
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from checkpoint.store import ModelStore
from language_service import loader as hosted_module
from language_service import memory
from language_service.engine.interface import Finished
from language_service.loader import LanguageLoader
from language_service.memory import available_bytes
from language_service.sampling.options import SamplingOptions
from language_service.scheduling.scheduler import SchedulerConfig

TAG = "tiny-v1.0.0"
CONTEXT = PRESETS["tiny"].language.context_length


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    create_checkpoint(root, TAG, PRESETS["tiny"])
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
        device=torch.device("cpu"),
        max_images=2,
        default_max_tokens=8,
        turn=threading.Lock(),
        **fields,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_a_loaded_model_answers_and_leaves_no_memory_behind(models: Path, dtype: torch.dtype) -> None:
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


async def test_the_cache_takes_no_more_than_all_sequences_can_fill(models: Path) -> None:
    hosted = await make_loader(models).load(TAG)
    assert hosted.info().language.num_blocks == 2 * CONTEXT // 16
    await hosted.close()


async def test_the_cache_takes_its_part_of_the_free_memory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says in the log and in its description what came of it."""
    per_block = 16 * 2 * 2 * 2 * 16 * 4
    monkeypatch.setattr(hosted_module, "available_bytes", lambda _device: 83 * per_block)
    with capture_logs() as logs:
        hosted = await make_loader(models, cache_fraction=0.25).load(TAG)
    (line,) = (each for each in logs if each["event"] == "kv cache ready")
    assert (line["num_blocks"], line["num_tokens"], line["num_bytes"]) == (20, 320, 20 * per_block)
    language = hosted.info().language
    assert (language.num_blocks, language.block_size, language.num_cache_bytes) == (20, 16, 20 * per_block)
    await hosted.close()


async def test_a_cache_smaller_than_the_context_limits_the_context(models: Path) -> None:
    """A prompt that could never hold its blocks must be refused, not wait for ever."""
    per_block = 16 * 2 * 2 * 2 * 16 * 4
    hosted = await make_loader(models, cache_bytes=10 * per_block + 7).load(TAG)
    assert hosted.info().language.num_blocks == 10
    assert hosted.info().language.context_length == hosted.limits.context_length == 160
    await hosted.close()


async def test_what_cannot_be_loaded_says_why(models: Path) -> None:
    with pytest.raises(NotFound):
        await make_loader(models).load("other-v1.0.0")
    with pytest.raises(FailedPrecondition, match="no room for one block"):
        await make_loader(models, cache_bytes=1000).load(TAG)


async def test_a_tokenizer_that_cannot_be_read_leaves_no_engine_behind(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_module, "read_verified", lambda *_: b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await make_loader(models).load(TAG)
    assert f"engine-{TAG}" not in [thread.name for thread in threading.enumerate()]


def test_free_memory_is_some_part_of_the_machines() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < available_bytes(torch.device("cpu")) <= total


def test_files_read_do_not_count_as_used_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights were just read there: their pages would be taken off the cache a second time."""
    for name, content in (
        ("memory.max", "1000000\n"),
        ("memory.current", "800000\n"),
        ("memory.stat", "anon 300000\nactive_file 100000\ninactive_file 400000\n"),
    ):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 600000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 600000
