"""Releases and files, as OpenAI's API lists them."""

from typing import Literal

from pydantic import Field

from http_gateway.schemas.base import ResponseModel

PURPOSES = ("vision", "user_data", "assistants")  # of files: all mean an image in a question


class Half(ResponseModel):
    """One half of a release, as its service runs it."""

    tag: str
    state: str = Field(description="loading, ready, draining or failed, or unspecified if no service tells.")
    backend: str
    device: str
    precision: str


class Model(ResponseModel):
    """A release, or an alias of the default one."""

    id: str = Field(description="Value of `model` in requests.")
    object: Literal["model"] = "model"
    created: int = Field(description="Always 0: a checkpoint does not tell.")
    owned_by: Literal["tandem"] = "tandem"
    root: str = Field(description="The release that answers now.")
    ready: bool = Field(description="Whether it can answer.")
    is_default: bool = Field(description="Whether requests without a model go to it.")
    kind: str = Field(description="Family and variant: resampler, direct or qwen3_vl.")
    max_model_len: int = Field(description="Most tokens of prompt and answer together.")
    max_images: int = Field(description="Most images of a prompt.")
    renders_tools: bool = Field(description="Whether it takes tools.")
    vision: Half
    language: Half


class ModelList(ResponseModel):
    """All releases and aliases."""

    object: Literal["list"] = "list"
    data: list[Model]


class File(ResponseModel):
    """An uploaded image."""

    id: str = Field(description="SHA-256 of the file. tandem:<id> is its URL in requests.")
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
