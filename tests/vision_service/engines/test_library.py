"""A missing library is an error with a remedy."""

import sys

import pytest

from chassis.errors import FailedPrecondition
from vision_service.engines import open_library


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # makes its import fail
    with pytest.raises(FailedPrecondition, match=r"tandem-serving\[tensorrt\]") as caught:
        open_library()
    assert caught.value.reason == "NO_TENSORRT"
