"""Encode JSON, compact and in UTF-8."""

import json
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def encode(value: Any) -> bytes:
    """Return `value` as JSON.

    Raises:
        ValueError: it has a number that JSON has not.
    """
    return _encode(value).encode()


def json_response(model: BaseModel) -> Response:
    """Return a model as the body of a response."""
    return Response(model.model_dump_json(), media_type="application/json")
