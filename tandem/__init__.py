"""Ask questions about images from Python.

`Processor` makes model inputs without a service. It needs the extra `processor`.

The command `tandem` is `tandem.commands`. The generated stubs are `tandem.v1`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from processing import Processor
    from tandem import errors
    from tandem.client import (
        Answer,
        AsyncClient,
        AsyncTextStream,
        Client,
        GenerateOptions,
        Half,
        Image,
        ImageInput,
        ImageReport,
        Message,
        PositionLogprobs,
        Release,
        ReleaseInfo,
        TextStream,
        Timings,
        TokenCount,
        TokenLogprob,
        Usage,
        assistant,
        system,
        user,
    )

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncTextStream",
    "Client",
    "GenerateOptions",
    "Half",
    "Image",
    "ImageInput",
    "ImageReport",
    "Message",
    "PositionLogprobs",
    "Processor",
    "Release",
    "ReleaseInfo",
    "TextStream",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "Usage",
    "__version__",
    "assistant",
    "errors",
    "system",
    "user",
]


if not TYPE_CHECKING:  # with `__getattr__`, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562).

        The services import `tandem.v1` through this package. They must not load the clients with it.
        """
        if name == "errors":
            return import_module("tandem.errors")
        if name == "Processor":
            return import_module("tandem.processor").Processor
        if name in __all__:
            return getattr(import_module("tandem.client"), name)
        raise AttributeError(f"module 'tandem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
