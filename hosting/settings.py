"""Settings of both stages: which models to serve and how to compute."""

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from chassis.network import is_loopback
from chassis.settings import CommaSeparated, ServiceSettings
from hosting.callers import Callers


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
    allow_anonymous: bool = Field(
        False, description="allow an address other than loopback without client certificates (mutual TLS)"
    )
    tls_clients: CommaSeparated = Field(
        (),
        description="names in client certificates that may call the service, separated by commas. Unset allows every "
        "certificate of --tls-client-ca",
    )
    tls_loaders: CommaSeparated = Field(
        (), description="names that may also load and unload models. Unset allows all of --tls-clients"
    )

    @property
    def dtype(self) -> torch.dtype:
        """The precision as a torch type."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @property
    def callers(self) -> Callers:
        """The client certificates that may call the stage."""
        return Callers(clients=self.tls_clients, loaders=self.tls_loaders)

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

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        """Refuse to serve strangers, as the gateway does.

        A stage has no keys and no limits for each tenant.
        """
        if self.tls_client_ca is None:
            if self.tls_clients or self.tls_loaders:
                raise ValueError("--tls-clients and --tls-loaders need client certificates: set --tls-client-ca")
            if not (is_loopback(self.listen) or self.allow_anonymous):
                raise ValueError(
                    "--listen is not loopback: set --tls-cert, --tls-key and --tls-client-ca, or --allow-anonymous"
                )
        return self
