"""Skips tests that cannot run with OpenVINO here."""

from importlib.util import find_spec

import pytest


def _computes_in_bfloat16() -> bool:
    if find_spec("openvino") is None:
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bfloat16 = pytest.mark.skipif(
    not _computes_in_bfloat16(), reason="OpenVINO is not installed, or this processor has no products of bfloat16"
)
