"""Decode attention is chosen by measurement, among kinds with the right numbers."""

import time

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from language_service.kernels import decode_choice
from language_service.kernels.decode_attention import AttendDecoded, GatheredAttention
from language_service.kernels.decode_choice import choose_decode_attention, fastest

HEADS = 4
KV = torch.zeros(1, 2, 8, 4, 2, 8)


class Delayed(GatheredAttention):
    """Right, but slow."""

    name = "delayed"

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        attend = super().plan(tables_NM, lengths_N)

        def later(q_NHE: Tensor, kv_2PSGE: Tensor) -> Tensor:
            time.sleep(0.005)
            return attend(q_NHE, kv_2PSGE)

        return later


class Zeros:
    """Fast, but wrong."""

    name = "zeros"

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        return lambda q_NHE, _kv: torch.zeros_like(q_NHE)


class NotFinite(Zeros):
    name = "nan"

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        return lambda q_NHE, _kv: torch.full_like(q_NHE, float("nan"))


class Failing(Zeros):
    name = "failing"

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        raise RuntimeError("no kernel image is available")


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_choice, "_SHAPES", ((1, 9), (3, 20)))
    monkeypatch.setattr(decode_choice, "_ROUNDS", 2)


def test_the_fastest_kind_is_chosen() -> None:
    assert fastest([Delayed(), GatheredAttention()], KV, HEADS).name == "torch"
    assert fastest([GatheredAttention(), Delayed()], KV, HEADS).name == "torch"


@pytest.mark.parametrize("wrong", [Zeros(), NotFinite(), Failing()], ids=lambda kind: kind.name)
def test_a_wrong_or_failing_kind_is_never_chosen_and_logged(wrong: Zeros) -> None:
    with capture_logs() as logs:
        assert fastest([Delayed(), wrong], KV, HEADS).name == "delayed"
    assert [(line["log_level"], line["kind"]) for line in logs] == [("warning", wrong.name), ("info", "delayed")]


def test_if_every_kind_fails_the_reference_remains() -> None:
    assert fastest([Failing()], KV, HEADS).name == "failing"


def test_measuring_does_not_change_the_cache() -> None:
    kv = torch.randn(KV.shape)
    before = kv.clone()
    fastest([GatheredAttention()], kv, HEADS)
    assert torch.equal(kv, before)


def test_on_a_cpu_auto_is_torch() -> None:
    assert choose_decode_attention("auto", KV, HEADS).name == "torch"


def test_triton_must_be_installed_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_choice, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="Triton is not installed, choose --decode-attention torch"):
        choose_decode_attention("triton", KV, HEADS)
