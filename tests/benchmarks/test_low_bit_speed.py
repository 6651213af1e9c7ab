"""The figures of the low-bit benchmark."""

from pathlib import Path

import pytest

from benchmarks.low_bit_speed import FULL, NIBBLES, Measured, fill, plot
from benchmarks.tools.report import Report


def test_forms_are_compared_with_the_best_peer_of_as_many_bits(tmp_path: Path) -> None:
    measured = Measured(bandwidths=[10.0, 20.0], loads=[0.0, 0.0])
    # The machine became twice as fast between the rounds.
    for name, rate in {FULL: 4.0, "w8a8": 6.0, NIBBLES: 9.0, "vllm w8a8": 5.0, "llama.cpp Q8_0": 3.0}.items():
        for count in (1, 32):
            measured.rates[name, count] = [rate, 2 * rate]
    report = Report("low_bit_speed", "Few bits")
    fill(report, measured, {FULL: 2.0, "w8a8": 1.0, NIBBLES: 0.9})
    figures = {figure.name: figure for figure in report.figures}
    assert figures["w8a8 / vllm w8a8, 1 at once"].value == pytest.approx(1.2)
    assert figures["w8a8 / vllm w8a8, 1 at once"].met
    assert "w8a8 / llama.cpp Q8_0, 1 at once" not in figures
    assert figures["bf16, 1 at once: share of the read bandwidth"].value == pytest.approx(80)
    assert not figures["w8a8, 1 at once: share of the read bandwidth"].met
    assert figures[f"{NIBBLES} / {FULL}, 32 at once"].met
    assert figures[f"{NIBBLES} / {FULL}, 1 at once"].met is None
    report.publish(lambda axes: plot(axes, measured), tmp_path)
