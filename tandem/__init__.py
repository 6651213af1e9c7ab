"""Tandem: ask questions about images. Clients, the `tandem` command, and the generated stubs (`tandem.v1`)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tandem import errors as errors
    from tandem.client import (
        Answer as Answer,
    )
    from tandem.client import (
        AsyncClient as AsyncClient,
    )
    from tandem.client import (
        AsyncTextStream as AsyncTextStream,
    )
    from tandem.client import (
        Client as Client,
    )
    from tandem.client import (
        GenerateOptions as GenerateOptions,
    )
    from tandem.client import (
        Half as Half,
    )
    from tandem.client import (
        Image as Image,
    )
    from tandem.client import (
        ImageInput as ImageInput,
    )
    from tandem.client import (
        ImageReport as ImageReport,
    )
    from tandem.client import (
        Message as Message,
    )
    from tandem.client import (
        PositionLogprobs as PositionLogprobs,
    )
    from tandem.client import (
        Release as Release,
    )
    from tandem.client import (
        ReleaseInfo as ReleaseInfo,
    )
    from tandem.client import (
        TextStream as TextStream,
    )
    from tandem.client import (
        Timings as Timings,
    )
    from tandem.client import (
        TokenCount as TokenCount,
    )
    from tandem.client import (
        TokenLogprob as TokenLogprob,
    )
    from tandem.client import (
        Usage as Usage,
    )
    from tandem.client import (
        assistant as assistant,
    )
    from tandem.client import (
        system as system,
    )
    from tandem.client import (
        user as user,
    )

__version__ = "0.1.0"

# fmt: off
_FROM_CLIENT = (
    "Answer", "AsyncClient", "AsyncTextStream", "Client", "GenerateOptions", "Half", "Image", "ImageReport", "Message",
    "Image", "PositionLogprobs", "Release", "ReleaseInfo", "TextStream", "Timings", "TokenCount", "TokenLogprob",
    "Usage", "assistant", "system", "user",
)
# fmt: on
__all__ = ["__version__", "errors", *_FROM_CLIENT]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562).

    The services import `tandem.v1` through this package, and must not load the clients with it.
    """
    if name == "errors":
        return import_module("tandem.errors")
    if name in _FROM_CLIENT:
        return getattr(import_module("tandem.client"), name)
    raise AttributeError(f"module 'tandem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
