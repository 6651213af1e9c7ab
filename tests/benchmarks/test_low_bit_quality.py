"""The figures of the benchmark of quality."""

from pathlib import Path

import pytest

from benchmarks.low_bit_quality import FORMS, OURS, TEXTS, THEIRS, fill, plot
from benchmarks.tools.perplexity import Score
from benchmarks.tools.report import Report


def test_aims_are_judged_relative_to_our_decoder_in_bfloat16(tmp_path: Path) -> None:
    names = ["transformers, float32", THEIRS, OURS, *map(str, FORMS)]
    scores = {(name, text): Score(perplexity=2.0, right=0.99) for name in names for text in TEXTS}
    scores["w8a8", TEXTS[0]] = Score(perplexity=2.04, right=0.97)
    report = Report("low_bit_quality", "Quality")
    fill(report, scores)
    figures = {figure.name: figure for figure in report.figures}
    assert figures[f"{TEXTS[0]}: ours above transformers, bfloat16"].met
    worse = figures[f"{TEXTS[0]}: w8a8 above bfloat16"]
    assert worse.value == pytest.approx(2.0)
    assert worse.met is False
    assert figures[f"{TEXTS[1]}: w8a8 above bfloat16"].met
    assert not figures[f"{TEXTS[0]}: right, w8a8"].met
    assert figures[f"{TEXTS[0]}: w4a8 g32 above bfloat16"].met is None
    report.publish(lambda axes: plot(axes, scores), tmp_path)
