"""What both stages can be told: which models to serve, and how to compute."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator

from chassis.settings import CommaSeparated, ServiceSettings


class StageSettings(ServiceSettings):
    """Settings of a service that runs one half of models out of a store."""

    models: Path = Field(description="folder of the model store")
    tags: CommaSeparated = Field((), description="tags to load at start, separated by commas")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="type of weights and arithmetic, and of a KV cache"
    )
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where the model runs: cpu, cuda, or cuda:<index>"
    )
    threads: int = Field(0, ge=0, description="threads of one forward pass on the processor; 0 is one a core")

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return torch.float32 if self.precision == "float32" else torch.bfloat16

    @field_validator("device")
    @classmethod
    def _is_here(cls, device: str) -> str:
        if device == "cpu":
            return device
        index = int(device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise ValueError(f"there is no such device here; torch sees {torch.cuda.device_count()} GPUs")
        return f"cuda:{index}"
