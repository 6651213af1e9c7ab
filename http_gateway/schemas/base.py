"""The base of all models, and fields without effect."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# Tags of unions start with this character. They are places of the schema, not of the body.
TAG = "~"


class RequestModel(BaseModel):
    """A JSON object of a request.

    Unknown fields are refused, because a misspelt option would change nothing without a word.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    """A JSON object of a response."""

    model_config = ConfigDict(extra="forbid", strict=True)


def ignored(why: str) -> Any:
    """Declare a field that is accepted without effect."""
    return Field(None, description=f"Ignored: {why}", json_schema_extra={"x-ignored": True})
