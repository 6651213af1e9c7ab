"""Clients of the gateway, blocking and asyncio."""

from tandem.client.aio import AsyncClient, AsyncTextStream
from tandem.client.blocking import Client, TextStream
from tandem.client.call import DEFAULT_ADDRESS
from tandem.client.rollouts import Rollouts
from tandem.client.types import (
    Answer,
    GenerateOptions,
    Half,
    Image,
    ImageInput,
    ImageReport,
    Message,
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

__all__ = [
    "DEFAULT_ADDRESS",
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
    "Release",
    "ReleaseInfo",
    "Rollouts",
    "TextStream",
    "Timings",
    "TokenCount",
    "TokenLogprob",
    "Usage",
    "assistant",
    "system",
    "user",
]
