"""GET /openapi.json: the document of this API, from its models."""

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from http_gateway.schemas.answers import ChatCompletion, ChatCompletionChunk
from http_gateway.schemas.chat import ChatRequest
from http_gateway.schemas.errors import ErrorBody
from http_gateway.schemas.models import PURPOSES, File, Model, ModelList
from http_gateway.schemas.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from http_gateway.wire.json_text import encode

# Method and path -> summary, model of the request, model of the response.
OPERATIONS: dict[tuple[str, str], tuple[str, type[BaseModel] | None, type[BaseModel] | None]] = {
    ("post", "/v1/chat/completions"): ("Answer a conversation about images.", ChatRequest, ChatCompletion),
    ("get", "/v1/models"): ("The releases, their state, and aliases.", None, ModelList),
    ("get", "/v1/models/{model}"): ("One release or alias.", None, Model),
    ("post", "/v1/files"): ("Upload an image, to name it in many requests.", None, File),
    ("post", "/tokenize"): ("Tokens of a text or a conversation.", TokenizeRequest, TokenizeResponse),
    ("post", "/detokenize"): ("Text of tokens.", DetokenizeRequest, DetokenizeResponse),
    ("get", "/healthz"): ("Whether the process lives.", None, None),
    ("get", "/readyz"): ("Whether requests can be answered now.", None, None),
    ("get", "/metrics"): ("Metrics in Prometheus' form.", None, None),
    ("get", "/version"): ("Version of this server.", None, None),
    ("get", "/openapi.json"): ("This document.", None, None),
}
_REF = "#/components/schemas/{model}"
_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(PURPOSES), "default": "vision"},
    },
    "required": ["file"],
}


@cache
def document() -> bytes:
    """Return the OpenAPI 3.1 document as JSON."""
    further: list[type[BaseModel]] = [ErrorBody, ChatCompletionChunk]
    models = {model for _, *both in OPERATIONS.values() for model in both if model is not None}
    wanted = sorted(models | set(further), key=lambda model: model.__name__)
    names, definitions = models_json_schema(
        [(model, "validation") for model in wanted], ref_template=_REF, by_alias=True
    )
    refs: dict[Any, Any] = {model: ref for (model, _mode), ref in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), (summary, request, response) in OPERATIONS.items():
        operation: dict[str, Any] = {"summary": summary, "responses": _responses(refs, response)}
        if request is not None:
            operation["requestBody"] = {"required": True, "content": _json(refs[request])}
        elif path == "/v1/files":
            operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
        paths.setdefault(path, {})[method] = operation
    content = {
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": version("tandem-serving")},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }
    return encode(content)


def _responses(refs: dict[Any, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Success."}
    if model is not None:
        success["content"] = _json(refs[model])
    if model is ChatCompletion:
        success["content"]["text/event-stream"] = {"schema": refs[ChatCompletionChunk]}
    return {"200": success, "default": {"description": "An error.", "content": _json(refs[ErrorBody])}}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


async def openapi(_request: Request) -> Response:
    """Return the document."""
    return Response(document(), media_type="application/json")


routes: list[BaseRoute] = [Route("/openapi.json", openapi)]
