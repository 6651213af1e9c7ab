"""Skips tests that this processor cannot run with OpenVINO."""

import openvino
import pytest

needs_bfloat16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="OpenVINO computes in bfloat16 only on processors that can",
)
