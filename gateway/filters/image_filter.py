"""Refuse images by a linear classifier on their visual tokens.

No second vision model is needed. A classifier is a safetensors file with

- `weight` [classes, width] and `bias` [classes], both float32,
- in its metadata: `classes` and `thresholds`, JSON lists with one entry per class,
- in its metadata: `vision_digest`, the digest of the vision half it was trained on, 64 hexadecimal digits.

A class is detected if sigmoid(weight @ mean(visual tokens) + bias) reaches its threshold.
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
class ImageClassifier:
    """A linear classifier with one threshold per class.

    Shapes: C classes, W width.
    """

    weight_CW: NDArray[np.float32]
    bias_C: NDArray[np.float32]
    classes: tuple[str, ...]
    thresholds_C: NDArray[np.float32]

    def detect(self, embeddings: tensor_pb2.Tensor) -> list[str]:
        """Return the classes detected in an image.

        Args:
            embeddings: bfloat16 tensor [tokens, width], already validated.
        """
        # A bfloat16 is the upper half of a float32.
        bits = np.frombuffer(embeddings.data, dtype="<u2").astype(np.uint32) << 16
        mean_W = bits.view(np.float32).reshape(tuple(embeddings.shape)).mean(axis=0)
        scores_C = 1 / (1 + np.exp(-(self.weight_CW @ mean_W + self.bias_C)))
        is_detected_C = scores_C >= self.thresholds_C
        return [name for name, is_detected in zip(self.classes, is_detected_C, strict=True) if is_detected]


class ImageFilter:
    """Image classifiers, one per vision half of the gateway's releases."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read one classifier file per vision half.

        Raises:
            FailedPrecondition: reason 'BAD_CLASSIFIER', a file is invalid or two are for the same vision half.
        """
        self._classifiers: dict[bytes, ImageClassifier] = {}
        for path in paths:
            vision_digest, classifier = read_classifier(path)
            if vision_digest in self._classifiers:
                raise _bad_classifier(path, "another one is for the same vision half")
            self._classifiers[vision_digest] = classifier

    def detect(self, tokens: tensor_pb2.VisualTokens) -> list[str]:
        """Return the classes detected in an image.

        Raises:
            FailedPrecondition: reason 'NO_CLASSIFIER', none fits the vision half that encoded the image. An image that
                cannot be checked is refused.
        """
        classifier = self._classifiers.get(tokens.vision_digest)
        if classifier is None or classifier.weight_CW.shape[1] != tokens.embeddings.shape[1]:
            raise FailedPrecondition(
                "The gateway has no image classifier for this vision model: ask its operator to add one.",
                reason="NO_CLASSIFIER",
            )
        return classifier.detect(tokens.embeddings)


def read_classifier(path: Path) -> tuple[bytes, ImageClassifier]:
    """Read a classifier file.

    Returns:
        Digest of the vision half it was trained on, and the classifier.

    Raises:
        FailedPrecondition: reason 'BAD_CLASSIFIER'.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = _Metadata.model_validate(file.metadata() or {})
            if any(file.get_slice(name).get_dtype() != "F32" for name in ("weight", "bias")):
                raise _bad_classifier(path, "weight and bias must be float32")
            weight_CW, bias_C = (file.get_tensor(name) for name in ("weight", "bias"))
    except (OSError, SafetensorError) as error:
        raise _bad_classifier(path, str(error).split("\n")[0].removesuffix(f": {path}")) from None
    except ValidationError as error:
        raise _bad_classifier(path, f"metadata {first_problem(error)}") from None
    num_classes = len(metadata.classes)
    thresholds_C = np.asarray(metadata.thresholds, np.float32)
    if weight_CW.ndim != 2 or not (weight_CW.shape[:1] == bias_C.shape == thresholds_C.shape == (num_classes,)):
        raise _bad_classifier(path, "classes, thresholds, weight and bias must have one entry per class")
    # A class with a NaN would never be detected.
    if not all(np.isfinite(values).all() for values in (weight_CW, bias_C, thresholds_C)):
        raise _bad_classifier(path, "weights, biases and thresholds must be finite")
    classifier = ImageClassifier(
        weight_CW=weight_CW, bias_C=bias_C, classes=metadata.classes, thresholds_C=thresholds_C
    )
    return bytes.fromhex(metadata.vision_digest), classifier


def write_classifier(path: Path, classifier: ImageClassifier, vision_digest: bytes) -> None:
    """Write a classifier file, which `read_classifier` reads."""
    from safetensors.numpy import save_file

    metadata = {
        "classes": json.dumps(classifier.classes),
        "thresholds": json.dumps(classifier.thresholds_C.tolist()),
        "vision_digest": vision_digest.hex(),
    }
    save_file({"weight": classifier.weight_CW, "bias": classifier.bias_C}, path, metadata)


def _bad_classifier(path: Path, problem: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"Fix the image classifier {path.name!r}: {problem}.", reason="BAD_CLASSIFIER", where=path
    )
