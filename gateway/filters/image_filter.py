"""A linear probe on visual tokens: says what an image shows without a second vision model.

Its file is a safetensors file with `weight` [classes, width] and `bias` [classes] (float32), and in its metadata
`classes` and `thresholds` (JSON lists, one entry a class) and `vision_digest` (of the vision half it was trained on, 64
hexadecimal digits). A class holds where sigmoid(weight @ mean of the visual tokens + bias) reaches its threshold.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError
from safetensors import SafetensorError, safe_open

from chassis.errors import FailedPrecondition
from chassis.validation import first_problem
from tandem.v1 import tensor_pb2


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True)

    classes: Json[tuple[str, ...]]
    thresholds: Json[tuple[float, ...]]
    vision_digest: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one file holds. C classes, W width."""

    weight_CW: NDArray[np.float32]
    bias_C: NDArray[np.float32]
    classes: tuple[str, ...]
    thresholds_C: NDArray[np.float32]

    def found(self, embeddings: tensor_pb2.Tensor) -> list[str]:
        """Return the classes that hold for an image; `embeddings` is a checked bfloat16 tensor [tokens, width]."""
        # A bfloat16 is the upper half of a float32.
        bits = np.frombuffer(embeddings.data, dtype="<u2").astype(np.uint32) << 16
        mean_W = bits.view(np.float32).reshape(tuple(embeddings.shape)).mean(axis=0)
        scores_C = 1 / (1 + np.exp(-(self.weight_CW @ mean_W + self.bias_C)))
        holds_C = scores_C >= self.thresholds_C
        return [name for name, holds in zip(self.classes, holds_C, strict=True) if holds]


class ImageFilter:
    """The probes of the vision halves this gateway may meet."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read one probe a vision half.

        Raises:
            FailedPrecondition: reason 'BAD_PROBE'; a file cannot be read, is not whole, or two are for the same half.
        """
        self._probes: dict[bytes, Probe] = {}
        for path in paths:
            vision_digest, probe = read_probe(path)
            if vision_digest in self._probes:
                raise _bad(path, "another one is for the same vision half")
            self._probes[vision_digest] = probe

    def found(self, tokens: tensor_pb2.VisualTokens) -> list[str]:
        """Return the classes that hold for an image.

        Raises:
            FailedPrecondition: reason 'NO_PROBE'; there is none for the vision half that encoded it, and an image that
                cannot be looked at is not let through.
        """
        probe = self._probes.get(tokens.vision_digest)
        if probe is None or probe.weight_CW.shape[1] != tokens.embeddings.shape[1]:
            raise FailedPrecondition("The image filter has no probe for this vision model.", reason="NO_PROBE")
        return probe.found(tokens.embeddings)


def read_probe(path: Path) -> tuple[bytes, Probe]:
    """Return the digest of the vision half a probe is for, and the probe.

    Raises:
        FailedPrecondition: reason 'BAD_PROBE'.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = _Metadata.model_validate(file.metadata() or {})
            if any(file.get_slice(name).get_dtype() != "F32" for name in ("weight", "bias")):
                raise _bad(path, "weight and bias are not float32")
            weight_CW, bias_C = (file.get_tensor(name) for name in ("weight", "bias"))
    except (OSError, SafetensorError) as error:
        raise _bad(path, str(error).split("\n")[0]) from None
    except ValidationError as error:
        raise _bad(path, f"metadata {first_problem(error)}") from None
    count = len(metadata.classes)
    thresholds_C = np.asarray(metadata.thresholds, np.float32)
    if weight_CW.ndim != 2 or not (weight_CW.shape[:1] == bias_C.shape == thresholds_C.shape == (count,)):
        raise _bad(path, "classes, thresholds, weight and bias are not one entry a class")
    if not all(np.isfinite(values).all() for values in (weight_CW, bias_C, thresholds_C)):
        raise _bad(path, "a weight, a bias or a threshold is not a finite number")  # its class would never hold
    probe = Probe(weight_CW=weight_CW, bias_C=bias_C, classes=metadata.classes, thresholds_C=thresholds_C)
    return bytes.fromhex(metadata.vision_digest), probe


def write_probe(path: Path, probe: Probe, vision_digest: bytes) -> None:
    """Write what `read_probe` reads."""
    from safetensors.numpy import save_file

    metadata = {
        "classes": json.dumps(probe.classes),
        "thresholds": json.dumps(probe.thresholds_C.tolist()),
        "vision_digest": vision_digest.hex(),
    }
    save_file({"weight": probe.weight_CW, "bias": probe.bias_C}, path, metadata)


def _bad(path: Path, what: str) -> FailedPrecondition:
    return FailedPrecondition(f"The image probe {path.name!r} cannot be used: {what}.", reason="BAD_PROBE")
