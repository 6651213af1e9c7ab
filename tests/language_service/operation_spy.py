"""Watch the operations that torch runs, one by one."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperationSpy(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports every operation while it is active.

    The report gets function, positional arguments, keyword arguments and result.
    """

    def __init__(self, report: Callable[[Any, Any, Any, Any], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        out = func(*args, **(kwargs or {}))
        self._report(func, args, kwargs or {}, out)
        return out
