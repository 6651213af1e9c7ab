"""Engines on disk are found by all they depend on."""

from dataclasses import replace
from pathlib import Path

import pytest

from chassis.errors import DataLoss, FailedPrecondition
from vision_service.engines import (
    BuiltEngine,
    EngineKey,
    EngineRecord,
    ShapeRange,
    find_engine,
    read_timing_cache,
    save_engine,
)

KEY = EngineKey(
    library="tensorrt", version="10.13.2", gpu="NVIDIA L4", compute_capability="8.9", onnx_digest=bytes(32).hex()
)
PROFILE = {"pixels": ShapeRange((1, 3, 28, 28), (4, 3, 28, 28), (16, 3, 28, 28))}


def saved(folder: Path, key: EngineKey = KEY, plan: bytes = b"an engine", timings: bytes = b"timings") -> EngineRecord:
    built = BuiltEngine(plan, timings, 1.25)
    record = EngineRecord.of(key, PROFILE, built)
    save_engine(folder, record, built)
    return record


def test_a_saved_engine_is_found_with_its_record(tmp_path: Path) -> None:
    record = saved(tmp_path / "engines")
    assert find_engine(tmp_path / "engines", KEY) == (record, b"an engine")
    assert record.profile == PROFILE
    assert (record.num_bytes, record.build_s) == (9, 1.25)


@pytest.mark.parametrize(
    "other",
    [
        {"library": "tensorrt_rtx"},
        {"version": "10.13.3"},
        {"gpu": "Tesla T4"},
        {"compute_capability": "7.5"},
        {"onnx_digest": bytes(31).hex() + "01"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_an_engine_of_anything_else_is_not_found(tmp_path: Path, other: dict[str, str]) -> None:
    saved(tmp_path)
    with pytest.raises(FailedPrecondition) as caught:
        find_engine(tmp_path, replace(KEY, **other))
    assert caught.value.reason == "NO_ENGINE"
    assert "tandem checkpoint export" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    """Otherwise an engine of other weights would fit."""
    saved(tmp_path)
    other = replace(KEY, onnx_digest=bytes(31).hex() + "01")
    (tmp_path / f"{KEY.digest}.json").rename(tmp_path / f"{other.digest}.json")
    with pytest.raises(FailedPrecondition) as caught:
        find_engine(tmp_path, other)
    assert caught.value.reason == "BAD_ENGINE"


@pytest.mark.parametrize("content", [b"", b"an engin", b"An engine"], ids=["empty", "truncated", "changed"])
def test_a_damaged_engine_is_refused(tmp_path: Path, content: bytes) -> None:
    record = saved(tmp_path)
    (tmp_path / f"{record.engine_sha256}.engine").write_bytes(content)
    with pytest.raises(DataLoss) as caught:
        find_engine(tmp_path, KEY)
    assert caught.value.reason == "DIGEST_MISMATCH"


def test_a_missing_engine_or_a_broken_record_is_refused(tmp_path: Path) -> None:
    record = saved(tmp_path)
    (tmp_path / f"{record.engine_sha256}.engine").unlink()
    with pytest.raises(FailedPrecondition, match="gone"):
        find_engine(tmp_path, KEY)
    (tmp_path / f"{KEY.digest}.json").write_text('{"key": 1}')
    with pytest.raises(FailedPrecondition, match="not valid"):
        find_engine(tmp_path, KEY)


def test_a_new_engine_replaces_that_of_its_key_only(tmp_path: Path) -> None:
    other = replace(KEY, gpu="Tesla T4")
    saved(tmp_path, other, b"for a T4")
    saved(tmp_path)
    saved(tmp_path, plan=b"a larger profile")
    assert find_engine(tmp_path, KEY)[1] == b"a larger profile"
    assert find_engine(tmp_path, other)[1] == b"for a T4"
    assert len(list(tmp_path.glob("*.engine"))) == 2
    assert not list(tmp_path.glob(".*")), "no partial file stays"


def test_timings_are_shared_by_engines_of_one_gpu_and_version(tmp_path: Path) -> None:
    assert read_timing_cache(tmp_path, KEY) == b""
    saved(tmp_path)
    assert read_timing_cache(tmp_path, replace(KEY, onnx_digest=bytes(31).hex() + "01")) == b"timings"
    assert read_timing_cache(tmp_path, replace(KEY, version="10.13.3")) == b""
    assert read_timing_cache(tmp_path, replace(KEY, gpu="Tesla T4")) == b""
