"""Errors, as every response other than success has them."""

from pydantic import Field

from http_gateway.schemas.base import ResponseModel


class ErrorDetail(ResponseModel):
    """One error."""

    message: str = Field(description="The problem and the remedy, in one sentence.")
    type: str
    param: str | None = Field(description="Field at fault.")
    code: str = Field(description="Name of the problem for programs, such as QUEUE_FULL.")
    request_id: str | None


class ErrorBody(ResponseModel):
    """The body of an error."""

    error: ErrorDetail
