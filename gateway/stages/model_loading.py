"""Load and unload a release's models at both stages."""

import asyncio
from collections.abc import Container
from typing import Any

from chassis.errors import FailedPrecondition, NotFound, TandemError, Unavailable
from gateway.stages.endpoint import Endpoint
from gateway.stages.errors import translate_errors, unreachable
from gateway.stages.releases import LanguageStage, Release, VisionStage
from gateway.stages.stage import Stage
from tandem.v1 import model_pb2

_UNLOAD_TIMEOUT_S = 600.0  # as long as the longest answer may take


class ModelLoading:
    """Loads and unloads models at the endpoints of both stages.

    An endpoint with a single model is a dedicated deployment of that model. The model is never unloaded there. While it
    is ready there, no other endpoint is asked to load it.
    """

    def __init__(self, vision: VisionStage, language: LanguageStage, *, load_timeout_s: float) -> None:
        self._vision = vision
        self._language = language
        self._load_timeout_s = load_timeout_s

    async def load(self, release: Release) -> None:
        """Load both halves of a release and await readiness.

        Raises:
            Unavailable: a stage cannot load its half now, but a retry may succeed.
            TandemError: a half cannot be loaded.
        """
        await asyncio.gather(
            self._load(self._vision, release.vision_tag), self._load(self._language, release.language_tag)
        )

    async def unload(self, vision_tag: str, language_tag: str, *, keep: Container[str]) -> None:
        """Unload two halves and return once they are gone.

        Args:
            vision_tag: the half to unload at the vision stage.
            language_tag: the half to unload at the language stage.
            keep: tags that stay loaded.

        Raises:
            TandemError: a stage could not unload its half.
        """
        await asyncio.gather(
            *(
                _unload_at(stage, endpoint, tag)
                for stage, tag in ((self._vision, vision_tag), (self._language, language_tag))
                for endpoint in stage.endpoints
                if tag not in keep and tag in endpoint.models and len(endpoint.models) > 1
            )
        )

    async def _load(self, stage: Stage[Any], tag: str) -> None:
        await stage.refresh()
        responsive = [endpoint for endpoint in stage.endpoints if endpoint.is_responsive]
        if not responsive:
            raise unreachable(stage.name)
        has_dedicated = any(_is_ready(endpoint, tag) and len(endpoint.models) == 1 for endpoint in responsive)
        missing = [endpoint for endpoint in responsive if not _is_ready(endpoint, tag)]
        if has_dedicated or not missing:
            return
        await asyncio.gather(*(self._load_at(stage, endpoint, tag) for endpoint in missing))
        await stage.refresh()

    async def _load_at(self, stage: Stage[Any], endpoint: Endpoint[Any], tag: str) -> None:
        try:
            with translate_errors(stage.name):
                await endpoint.stub.LoadModel(model_pb2.LoadModelRequest(tag=tag), timeout=self._load_timeout_s)
        except Unavailable:
            raise
        except TandemError as error:
            raise FailedPrecondition(
                f"The {stage.name} service could not load {tag}: {error.message}", reason="MODEL_FAILED"
            ) from error


async def _unload_at(stage: Stage[Any], endpoint: Endpoint[Any], tag: str) -> None:
    try:
        with translate_errors(stage.name):
            await endpoint.stub.UnloadModel(model_pb2.UnloadModelRequest(tag=tag), timeout=_UNLOAD_TIMEOUT_S)
    except NotFound:
        pass  # another gateway has unloaded it


def _is_ready(endpoint: Endpoint[Any], tag: str) -> bool:
    info = endpoint.models.get(tag)
    return info is not None and info.state == model_pb2.MODEL_STATE_READY
