"""Errors of callers, and of limits, are not those of a release."""

import re
from pathlib import Path

import pytest

from chassis.errors import Cancelled, Internal, InvalidArgument, ResourceExhausted, TandemError, Unavailable
from gateway.admission import REFUSALS
from gateway.rollout.blame import is_client_error, is_constraint_failure

ADMISSION = Path(__file__).parents[3] / "gateway" / "admission"


@pytest.mark.parametrize("reason", sorted(REFUSALS))
def test_a_refusal_of_the_gateway_says_nothing_about_a_release(reason: str) -> None:
    """Clients could roll a canary back with their own limits."""
    assert is_client_error(ResourceExhausted("Retry later.", reason=reason, retry_after_s=1))


def test_every_reason_by_which_the_gateway_refuses_is_listed() -> None:
    found = {
        reason
        for path in ADMISSION.glob("*.py")
        for reason in re.findall(r'reason="([A-Z_]+(?:_RATE|_BUSY))"', path.read_text())
    }
    assert found == REFUSALS


@pytest.mark.parametrize(
    ("error", "is_clients"),
    [
        (InvalidArgument("Wrong.", reason="BAD_ROLE"), True),
        (Cancelled("It left."), True),
        (ResourceExhausted("The queue is full.", reason="QUEUE_FULL", retry_after_s=1), False),
        (Unavailable("Away.", reason="NO_REPLICA"), False),
        (Internal("Failed.", reason="LANGUAGE_FAILED"), False),
    ],
)
def test_errors_of_stages_are_those_of_a_release(error: TandemError, is_clients: bool) -> None:
    assert is_client_error(error) == is_clients


def test_a_constraint_that_failed_is_for_the_other_release_to_judge() -> None:
    assert is_constraint_failure(InvalidArgument("It fails.", reason="CONSTRAINT_FAILED"))
    assert not is_constraint_failure(InvalidArgument("Wrong.", reason="BAD_ROLE"))
