"""The figures of the benchmark of both language engines."""

import pytest

from benchmarks.engines import TANDEM, VLLM, Measured, agreement, fill
from benchmarks.tools.report import Report


def one(rates: list[float], tokens: list[int], num_bytes: int = 0) -> Measured:
    return Measured(
        rates={"8 at once": rates},
        first_token_s={"8 at once": [0.1, 0.3], "alone": [0.05]},
        first_token_ids={"8 at once": tokens},
        num_bytes=num_bytes,
    )


def test_rounds_are_compared_in_pairs() -> None:
    # The machine became twice as fast between the rounds.
    measured = {TANDEM: one([30.0, 60.0], [1, 2], 2_000_000_000), VLLM: one([20.0, 40.0], [1, 3])}
    report = Report("engines", "Both engines")
    fill(report, measured, "0.6B")
    figures = {figure.name: figure.value for figure in report.figures}
    assert figures["0.6B, 8 at once: throughput, tandem / vllm"] == pytest.approx(1.5)
    assert figures["0.6B, 8 at once, tandem: time to first token p50"] == pytest.approx(200)
    assert figures["0.6B, tandem: memory of the service"] == pytest.approx(2)
    assert "0.6B, vllm: memory of the service" not in figures
    assert "0.6B, alone: throughput, tandem / vllm" not in figures
    assert agreement(measured) == pytest.approx(50)


def test_without_vllm_ours_is_measured_alone() -> None:
    report = Report("engines", "Our engine")
    fill(report, {TANDEM: one([30.0], [1])}, "demo stack")
    names = {figure.name for figure in report.figures}
    assert "demo stack, 8 at once, tandem: throughput" in names
    assert not any("vllm" in name for name in names)
