"""Messages of a conversation."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from http_gateway.schemas.base import TAG, RequestModel, ignored
from http_gateway.schemas.tools import ToolCall


class TextPart(RequestModel):
    """Text of a message."""

    type: Literal["text"]
    text: str = Field(description="The text, at least 1 character.")


class ImageUrl(RequestModel):
    """Place of an image."""

    url: str = Field(
        description="data: URL of the file in base64, tandem:<sha256> of an uploaded image, or an https: URL of a host "
        "that the operator allows.",
    )
    detail: Any = ignored("the model fixes the number of visual tokens")


class ImagePart(RequestModel):
    """Image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _kind_of_part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return TAG + kind if kind in ("text", "image_url") else None


def _kind_of_content(content: Any) -> str:
    return f"{TAG}parts" if isinstance(content, list) else f"{TAG}string"


Part = Annotated[
    Annotated[TextPart, Tag(f"{TAG}text")] | Annotated[ImagePart, Tag(f"{TAG}image_url")],
    Discriminator(_kind_of_part, custom_error_type="kind", custom_error_message="Its type must be text or image_url"),
]
Content = Annotated[
    Annotated[str, Tag(f"{TAG}string")] | Annotated[list[Part], Tag(f"{TAG}parts")], Discriminator(_kind_of_content)
]


class Message(RequestModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="The author. 'developer' means the same as 'system', and 'tool' gives the result of a call."
    )
    content: Content | None = Field(None, description="Text, or text and images in reading order.")
    tool_calls: list[ToolCall] | None = Field(None, max_length=128, description="Calls of the assistant.")
    tool_call_id: str | None = Field(None, description="Id of the call that a tool's result belongs to.")
    name: Any = ignored("templates have no names of authors")
    # Parts of an earlier answer, which clients send back as they got them.
    refusal: Any = ignored("part of an earlier answer")
    annotations: Any = ignored("part of an earlier answer")
    audio: Any = ignored("part of an earlier answer")
    reasoning_content: Any = ignored("part of an earlier answer")
