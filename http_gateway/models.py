"""GET /v1/models: the releases, their state, and aliases."""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chassis.errors import NotFound
from http_gateway.door import door_of
from http_gateway.schemas.models import Half, Model, ModelList
from http_gateway.wire.caller import caller_of
from http_gateway.wire.errors import translated
from http_gateway.wire.json_text import json_response
from tandem.v1 import gateway_pb2, model_pb2

_TIMEOUT_S = 10.0


async def list_models(request: Request) -> Response:
    """Return all releases, then the aliases of the default one."""
    return json_response(ModelList(data=list(await _models(request))))


async def get_model(request: Request) -> Response:
    """Return one release or alias.

    Raises:
        NotFound: reason 'UNKNOWN_RELEASE'.
    """
    name = request.path_params["model"]
    for model in await _models(request):
        if model.id == name:
            return json_response(model)
    raise NotFound("There is no such model: GET /v1/models lists all.", reason="UNKNOWN_RELEASE", field="model")


async def _models(request: Request) -> Iterator[Model]:
    door, caller = door_of(request), caller_of(request.scope["headers"])
    with translated():
        listed = await door.gateway.ListModels(
            gateway_pb2.GatewayListModelsRequest(), metadata=caller.metadata(), timeout=_TIMEOUT_S
        )
    return _with_aliases([_model(release) for release in listed.releases], door.settings.model_aliases)


def _with_aliases(models: list[Model], aliases: tuple[str, ...]) -> Iterator[Model]:
    yield from models
    for model in models:
        if model.is_default:
            yield from (model.model_copy(update={"id": alias}) for alias in aliases)


def _model(info: gateway_pb2.ReleaseInfo) -> Model:
    vision, language = info.release.vision_tag, info.release.language_tag
    name = language if vision == language else f"{vision},{language}"
    return Model(
        id=name,
        created=0,
        root=name,
        ready=info.ready,
        is_default=info.is_default,
        kind=info.kind,
        max_model_len=info.language.language.context_length,
        max_images=info.language.language.max_images,
        renders_tools=info.renders_tools,
        vision=_half(vision, info.vision),
        language=_half(language, info.language),
    )


def _half(tag: str, info: model_pb2.ModelInfo) -> Half:
    state = model_pb2.ModelState.Name(info.state).removeprefix("MODEL_STATE_").lower()
    return Half(tag=tag, state=state, backend=info.backend, device=info.device, precision=info.precision)


routes: list[BaseRoute] = [Route("/v1/models", list_models), Route("/v1/models/{model:path}", get_model)]
