"""Tandem: ask questions about pictures. The clients, the `tandem` command and the generated stubs (`tandem.v1`)."""

from tandem import errors
from tandem.client import Client, TextStream
from tandem.client_async import AsyncClient, AsyncTextStream
from tandem.client_types import (
    Answer,
    GenerateOptions,
    Half,
    Image,
    ImageReport,
    Message,
    Picture,
    PositionLogprobs,
    Release,
    ReleaseInfo,
    Timings,
    TokenCount,
    TokenLogprob,
    Usage,
    assistant,
    system,
    user,
)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncTextStream",
    "Client",
    "GenerateOptions",
    "Half",
    "Image",
    "ImageReport",
    "Message",
    "Picture",
    "PositionLogprobs",
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
