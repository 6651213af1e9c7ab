"""Follow constraints without an engine."""

from collections.abc import Sequence

from language_service.sampling.grammar import Grammar, advance, wait_for_masks

_TIMEOUT_S = 20  # on a busy machine


def settle(grammars: Sequence[Grammar]) -> None:
    """Send accepted tokens, and wait for the next masks."""
    advance(grammars, timeout_s=_TIMEOUT_S)
    wait_for_masks(grammars, timeout_s=_TIMEOUT_S)
