"""Every check runs on a CPU, with tiny sizes."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.catalog import CHECKS
from benchmarks.gpu_check.checks import attention, decode_speed, decoder, first_token, low_bit, machine, vision
from benchmarks.gpu_check.limits import median_s
from benchmarks.gpu_check.models import DeviceTensors, decoder_tensors, varied
from benchmarks.gpu_check.rows import Row, RowWriter, read_rows
from benchmarks.gpu_check.sizes import TINY
from chassis.errors import FailedPrecondition
from checkpoint.families import layout
from vision_service.backends import BackendOptions


@pytest.fixture
def writer(tmp_path: Path) -> RowWriter:
    return RowWriter("check", tmp_path / "rows.jsonl")


def rows(folder: Path) -> dict[str, Row]:
    return {row.name: row for row in read_rows(folder / "rows.jsonl")}


def test_the_machines_limits_are_measured(tmp_path: Path, writer: RowWriter) -> None:
    machine.run(TINY, writer)
    found = rows(tmp_path)
    assert torch.__version__ in found["versions"].note
    assert all((found[name].value or 0) > 0 for name in ("memory bandwidth", "matrix peak, bfloat16"))


@pytest.mark.slow
def test_the_decoder_meets_all_aims(tmp_path: Path, writer: RowWriter) -> None:
    decoder.run(TINY, writer)
    found = rows(tmp_path)
    assert not [row for row in found.values() if row.met is not True]
    assert len(found) == 9


def test_a_wrong_decoder_misses_its_aims(tmp_path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the check would pass everything."""
    wrong = iter(float(step) for step in range(3))
    monkeypatch.setattr(decoder, "_logits", lambda _runner: torch.full((2, 5), 1.0 + next(wrong)))
    tensors = varied(decoder_tensors(TINY.small, dtype=torch.float32, device=torch.device("cpu")))
    decoder._check_logits(TINY, tensors, writer)
    assert [row.met for row in rows(tmp_path).values()] == [False, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_kernels_are_compared(tmp_path: Path, writer: RowWriter) -> None:
    attention.run(TINY, writer)
    found = rows(tmp_path)
    for count, length in TINY.decode_shapes:
        for kind in ("torch, gathered blocks", "FlexAttention, gathered blocks"):
            assert found[f"decode, {count} x {length}, {kind}, error"].met
    for new, cached in TINY.prefill_shapes:
        for kind in ("explicit mask", "causal, flash"):
            assert found[f"prefill, {new} of {cached}, {kind}, error"].met
    varlen = found["decode, 1 x 64, torch varlen_attn, blocks in place"]
    assert varlen.value is None
    assert varlen.note.startswith("cannot run here")


@pytest.mark.slow
def test_decode_and_prefill_are_measured(tmp_path: Path, writer: RowWriter) -> None:
    decode_speed.run(TINY, writer)
    found = rows(tmp_path)
    for count in TINY.num_sequences:
        assert (found[f"tiny, {count} sequences of 20, decode"].value or 0) > 0
        assert (found[f"tiny, {count} sequences of 20, share of the bandwidth's limit"].value or 0) > 0
        assert (found[f"tiny, {count} sequences, whole engine"].value or 0) > 0
    assert (found["tiny, prefill of 16, share of the matrix peak"].value or 0) > 0


@pytest.mark.slow
def test_vision_backends_are_measured(tmp_path: Path, writer: RowWriter) -> None:
    vision.run(TINY, writer)
    found = rows(tmp_path)
    for count in TINY.image_batches:
        assert (found[f"torch, model alone, batch {count}"].value or 0) > 0
        assert (found[f"backend torch, batch {count}"].value or 0) > 0
    assert found["model alone, scaled to a T4's peak"].met is not None


@pytest.mark.slow
def test_first_tokens_are_timed_through_the_whole_stack(tmp_path: Path, writer: RowWriter) -> None:
    first_token.run(TINY, writer)
    found = rows(tmp_path)
    assert "whole stack" not in found, found["whole stack"].note
    assert (found["whole stack, first token, p99 at 2 callers"].value or 0) > 0
    assert (found["whole stack, vision, median"].value or 0) > 0


def test_first_tokens_are_timed_in_one_process_without_the_stack(
    tmp_path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ImportError("No module named 'grpc'")

    monkeypatch.setattr(first_token, "_run_stack", fail)
    first_token.run(TINY, writer)
    found = rows(tmp_path)
    assert "No module named 'grpc'" in found["whole stack"].note
    assert (found["in one process, no gRPC, first token, p99 at 2 callers"].value or 0) > 0


def test_decoders_with_few_bits_are_compared_and_timed(tmp_path: Path, writer: RowWriter) -> None:
    low_bit.run(TINY, writer)
    found = rows(tmp_path)
    for scheme in ("w8a8", "w4a16", "w4a8"):
        assert found[f"{scheme}, error of logits"].met
    bytes_of = {
        scheme: found[f"tiny, {scheme} scheme, decode of 1 sequence"].note for scheme in ("no", "w8a8", "w4a16", "w4a8")
    }
    assert len(set(bytes_of.values())) > 1


def test_wrong_logits_of_few_bits_miss_the_aim(
    tmp_path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = iter(float(step) for step in range(6))
    monkeypatch.setattr(low_bit, "_logits", lambda _runner: torch.full((1, 5), 1.0 + next(wrong)))
    low_bit.run(TINY, writer)
    assert [row.met for row in rows(tmp_path).values() if row.aim] == [False, False, False]


def test_device_tensors_have_the_layout_and_depend_on_names_only() -> None:
    first, second = (DeviceTensors(TINY.model, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    names = list(first)
    assert {name: tuple(first[name].shape) for name in names} == {spec.name: spec.shape for spec in layout(TINY.model)}
    assert all(torch.equal(first[name], second[name]) for name in reversed(names))


def test_a_median_is_of_the_calls_after_the_first() -> None:
    calls: list[int] = []
    assert median_s(lambda: calls.append(1), torch.device("cpu"), 4) < 0.1
    assert len(calls) > 4


def test_dry_lists_every_check_and_imports_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry", "--no-install"]) == 0
    shown = capsys.readouterr().out
    assert all(check.name in shown for check in CHECKS)
    assert "ready" in shown
    assert "GPU: torch" in shown


def test_nothing_is_exported_for_a_library_that_cannot_run_it(
    tmp_path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")

    def fail(*_: object) -> None:
        raise AssertionError("it was exported")

    monkeypatch.setattr(vision, "_export", fail)
    vision._measure_backends(replace(TINY, dtype=torch.bfloat16, backends=("onnxruntime",)), writer)
    assert "bfloat16 on a CPU" in rows(tmp_path)["backend onnxruntime"].note
    with pytest.raises(FailedPrecondition, match="cannot use GPUs"):
        vision._check_library("onnxruntime", BackendOptions(precision="bfloat16", device=torch.device("cuda:0")))


@pytest.mark.slow
def test_exported_backends_are_measured_or_say_why_not(
    tmp_path: Path, writer: RowWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "_EXPORT_S", 100.0)  # as much as a test may take
    vision._measure_backends(replace(TINY, backends=("torch", "onnxruntime", "triton"), image_batches=(1,)), writer)
    found = rows(tmp_path)
    assert "needs a Triton server" in found["backend triton"].note
    if find_spec("onnxruntime") is None:
        assert "is not installed" in found["backend onnxruntime"].note
    else:
        assert (found["backend onnxruntime, batch 1"].value or 0) > 0, found


def test_products_are_told_from_other_kernels_by_name() -> None:
    """The names are those of a step on an H200."""
    times_us = {
        "nvjet_sm90_tst_256x8_64x6_4x1_v_bz_TNT": 1477.0,
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16>": 10.0,
        "_attend_part": 193.0,
        "void splitKreduce_kernel<32, 16, int, float>": 126.0,
    }
    assert decode_speed.products_us(times_us) == 1487.0
