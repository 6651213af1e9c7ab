"""Triton's errors become ours, without its texts."""

import pytest
from tritonclient.utils import InferenceServerException

from chassis.errors import TandemError
from vision_service.backends.triton_errors import translated_errors


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; ipv4:10.0.0.7:8001", "TRITON_UNREACHABLE"),
        ("UNAVAILABLE", "Socket closed", "TRITON_UNREACHABLE"),
        ("UNAVAILABLE", "Request for unknown model: 'tiny' version 3 is not at ready state", "TRITON_NO_VERSION"),
        ("UNAVAILABLE", "model 'tiny' is not ready", "TRITON_NOT_READY"),
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", "QUEUE_FULL"),
        ("UNAVAILABLE", "Request timeout expired", "QUEUE_FULL"),
        ("NOT_FOUND", "Request for unknown model: 'tiny' is not found", "TRITON_NO_VERSION"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "TRITON_TIMEOUT"),
        ("INTERNAL", "Failed to process the request: /models/tiny/1/model.py", "TRITON_FAILED"),
        ("INVALID_ARGUMENT", "unexpected shape for input 'pixels'", "TRITON_FAILED"),
        (None, None, "TRITON_FAILED"),
    ],
)
def test_a_status_has_a_reason_of_its_own(status: str | None, text: str | None, reason: str) -> None:
    with pytest.raises(TandemError) as caught, translated_errors():
        raise InferenceServerException(msg=text, status=status and f"StatusCode.{status}")
    assert caught.value.reason == reason
    for secret in ("10.0.0.7", "/models", "pixels"):
        assert secret not in caught.value.message
