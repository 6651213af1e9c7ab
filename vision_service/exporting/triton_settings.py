"""How Triton runs a vision half."""

from dataclasses import dataclass
from typing import Literal

TritonPlatform = Literal["onnxruntime", "tensorrt_plan", "python"]
InstanceKind = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSettings:
    """How Triton runs the model."""

    platform: TritonPlatform = "onnxruntime"
    max_batch_size: int = 16  # images
    max_wait_ms: float = 2.0  # that a request waits for others
    max_queue: int = 256  # waiting requests of one version. A further one is rejected at once
    instances: int = 1  # that run side by side, on each GPU or on the CPU
    kind: InstanceKind = "auto"
    threads: int = 1  # of one instance, for the platform python
