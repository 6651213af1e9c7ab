"""Loads both halves of a release where the stages run, before it takes requests, and unloads them when it has left."""

import asyncio
from collections.abc import Container
from typing import Any

from chassis.errors import FailedPrecondition, NotFound, TandemError, Unavailable
from gateway.stages.releases import LanguageStage, Release, VisionStage
from gateway.stages.stage import Endpoint, Stage, errors_of, unreachable
from tandem.v1 import model_pb2

_UNLOAD_TIMEOUT_S = 600.0  # as long as the longest answer may take
_READY = model_pb2.MODEL_STATE_READY


class ModelLife:
    """Asks the endpoints of both stages to load and to unload.

    An endpoint that holds one model and no other is a deployment of that model: nobody unloads it there, and where one
    has the model already, nobody loads it elsewhere.
    """

    def __init__(self, vision: VisionStage, language: LanguageStage, *, load_timeout_s: float) -> None:
        self._vision = vision
        self._language = language
        self._load_timeout_s = load_timeout_s

    async def load(self, release: Release) -> None:
        """Have both stages hold the release, ready and warm; at once where they do.

        Raises:
            TandemError: what kept one from loading; Unavailable where trying again may help.
        """
        await asyncio.gather(
            self._load(self._vision, release.vision_tag), self._load(self._language, release.language_tag)
        )

    async def unload(self, vision_tag: str, language_tag: str, *, keep: Container[str]) -> None:
        """Have both stages drop these halves, except the tags in `keep`; answers when they are gone.

        Raises:
            TandemError: a stage did not do it.
        """
        await asyncio.gather(
            *(
                _unload(stage, endpoint, tag)
                for stage, tag in ((self._vision, vision_tag), (self._language, language_tag))
                for endpoint in stage.endpoints
                if tag not in keep and tag in endpoint.models and len(endpoint.models) > 1
            )
        )

    async def _load(self, stage: Stage[Any], tag: str) -> None:
        await stage.refresh()
        reached = [endpoint for endpoint in stage.endpoints if endpoint.answers]
        if not reached:
            raise unreachable(stage.name)
        has_its_own = any(_is_ready(endpoint, tag) and len(endpoint.models) == 1 for endpoint in reached)
        missing = [endpoint for endpoint in reached if not _is_ready(endpoint, tag)]
        if has_its_own or not missing:
            return
        await asyncio.gather(*(self._load_at(stage, endpoint, tag) for endpoint in missing))
        await stage.refresh()

    async def _load_at(self, stage: Stage[Any], endpoint: Endpoint[Any], tag: str) -> None:
        try:
            with errors_of(stage.name):
                await endpoint.stub.LoadModel(model_pb2.LoadModelRequest(tag=tag), timeout=self._load_timeout_s)
        except Unavailable:
            raise
        except TandemError as error:
            raise FailedPrecondition(
                f"The {stage.name} service could not load {tag}: {error.message}", reason="MODEL_FAILED"
            ) from error


async def _unload(stage: Stage[Any], endpoint: Endpoint[Any], tag: str) -> None:
    try:
        with errors_of(stage.name):
            await endpoint.stub.UnloadModel(model_pb2.UnloadModelRequest(tag=tag), timeout=_UNLOAD_TIMEOUT_S)
    except NotFound:
        pass  # another gateway was first


def _is_ready(endpoint: Endpoint[Any], tag: str) -> bool:
    info = endpoint.models.get(tag)
    return info is not None and info.state == _READY
