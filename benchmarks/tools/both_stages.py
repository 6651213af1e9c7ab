"""Serve both stages from one process.

The code is that of the two services. `benchmarks.isolation` compares separate processes with it.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.server import Server, run_service
from chassis.settings import ServiceSettings, load_settings
from language_service.service import LanguageSettings
from language_service.service import open_service as open_language
from vision_service.service import VisionSettings
from vision_service.service import open_service as open_vision


class BothSettings(ServiceSettings):
    """Settings of both stages. All others keep their defaults."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_BOTH_")

    models: Path = Field(description="folder of the model store")
    tag: str = Field(description="tag of the checkpoint to serve")
    threads: int = Field(1, ge=1, description="threads per forward pass, in each stage")
    cache_bytes: int = Field(0, ge=0, description="size of the visual-token cache, bytes")
    kv_cache_bytes: int = Field(2**26, ge=1, description="size of the KV cache, bytes")


@asynccontextmanager
async def open_service(settings: BothSettings, server: Server) -> AsyncIterator[None]:
    """Add the servicers of both stages to one server."""
    stage = ["--models", str(settings.models), "--tags", settings.tag, "--threads", str(settings.threads)]
    vision = load_settings(VisionSettings, [*stage, "--cache-bytes", str(settings.cache_bytes)])
    language = load_settings(LanguageSettings, [*stage, "--kv-cache-bytes", str(settings.kv_cache_bytes)])
    async with open_vision(vision, server), open_language(language, server):
        yield


if __name__ == "__main__":
    run_service("both-stages", load_settings(BothSettings, sys.argv[1:]), open_service)
