"""Tools and their calls, as clients send them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from http_gateway.schemas.base import TAG, RequestModel

# The gateway checks it again. Here the error names the client's own field.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionDefinition(RequestModel):
    """A function that the model may call."""

    name: Name
    description: str | None = Field(None, description="Its purpose, for the model.")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments. Default: none.")
    strict: bool | None = Field(None, description="Whether the arguments of every call fit the schema.")


class Tool(RequestModel):
    """A tool of the client. Functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(RequestModel):
    """The name of a function."""

    name: Name


class NamedToolChoice(RequestModel):
    """The function that the answer calls."""

    type: Literal["function"]
    function: FunctionName


def _kind_of_choice(value: Any) -> str:
    return TAG + ("word" if isinstance(value, str) else "named")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(f"{TAG}word")] | Annotated[NamedToolChoice, Tag(f"{TAG}named")],
    Discriminator(_kind_of_choice),
]


class FunctionCall(RequestModel):
    """One call of a function."""

    name: Name
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(RequestModel):
    """One call in an earlier answer."""

    id: str = Field(min_length=1, max_length=256, description="Its result names this id.")
    type: Literal["function"]
    function: FunctionCall
