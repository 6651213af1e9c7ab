"""Settings of both stages: which models to serve and how to compute."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator

from chassis.settings import CommaSeparated, ServiceSettings


class StageSettings(ServiceSettings):
    """Settings of a stage, which runs half of each model."""

    models: Path = Field(description="folder of the model store")
    tags: CommaSeparated = Field((), description="tags to load at start, separated by commas")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="data type of weights, arithmetic and KV cache"
    )
    device: str = Field(
        "cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="device of the model: cpu, cuda or cuda:<index>"
    )
    threads: int = Field(0, ge=0, description="threads of one forward pass on the CPU. 0 is one per core")

    @property
    def dtype(self) -> torch.dtype:
        """The precision as a torch type."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if device == "cpu":
            return device
        index = int(device.partition(":")[2] or 0)
        num_gpus = torch.cuda.device_count()
        if index >= num_gpus:
            choices = "cpu" if num_gpus == 0 else f"cpu or cuda:0 to cuda:{num_gpus - 1}"
            raise ValueError(f"torch sees {num_gpus} GPUs here, so choose {choices}")
        return f"cuda:{index}"
