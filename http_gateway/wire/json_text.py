"""Encode JSON, compact and in UTF-8."""

import json
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def encode(value: Any) -> bytes:
    """Return `value` as JSON.

    Raises:
        ValueError: it has a number that JSON has not.
    """
    return _encode(value).encode()
