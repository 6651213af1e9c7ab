"""Try kernels before they are used."""

from collections.abc import Callable

import structlog

_log = structlog.get_logger()


def gives_right_numbers(name: str, error: Callable[[], float], most: float) -> bool:
    """Return whether kernels run here and are exact enough.

    If not, logs the reason.

    Args:
        name: of the kernels, for the log.
        error: runs them, and returns their error.
        most: the largest error that rounding explains.
    """
    try:
        found = error()
    except Exception as problem:  # a compiler or driver can fail in many ways. torch computes the same.
        _log.warning(f"{name} not used", reason=str(problem)[:500])
        return False
    if not found < most:  # also if it is not a number
        _log.warning(f"{name} not used", reason=f"its numbers differ by {found:.2g}")
        return False
    return True
