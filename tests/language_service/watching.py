"""Operations on tensors, watched one by one as torch does them."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of every operation while it is on: what it is, its arguments, by place and by name, and its result."""

    def __init__(self, tell: Callable[[Any, Any, Any, Any], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation."""
        out = func(*args, **(kwargs or {}))
        self._tell(func, args, kwargs or {}, out)
        return out
