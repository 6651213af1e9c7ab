"""Invalid configurations are refused."""

from pathlib import Path

import pytest

from chassis.errors import FailedPrecondition
from checkpoint.config import CONFIG_FILE, read_config, write_config
from checkpoint.presets import RESAMPLER_PRESETS


@pytest.mark.parametrize(
    ("written", "changed", "field"),
    [
        ('"norm_eps": 1e-6', '"norm_eps": Infinity', "language.norm_eps"),
        ('"rope_theta": 1000000.0', '"rope_theta": Infinity', "language.rope_theta"),
        ("0.48145466", "NaN", "vision.image_mean.0"),
        ("0.26862954", "NaN", "vision.image_std.0"),
    ],
)
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, written: str, changed: str, field: str) -> None:
    """It has no digest and gives no answers."""
    write_config(RESAMPLER_PRESETS["tiny"], tmp_path)
    path = tmp_path / CONFIG_FILE
    text = path.read_text()
    assert written in text
    path.write_text(text.replace(written, changed, 1))
    with pytest.raises(FailedPrecondition, match=field) as caught:
        read_config(tmp_path)
    assert caught.value.reason == "BAD_CHECKPOINT"
