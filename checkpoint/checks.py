"""Compare weight files with a configuration. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence

from chassis.errors import FailedPrecondition
from checkpoint.families import EMBEDDING, HEAD, Half, ModelConfig, TensorSpec, half_of, layout
from checkpoint.stored_tensor import FLOAT_BYTES, StoredTensor, tensor_digest
from checkpoint.weight_files import WeightFiles

_NAMES_SHOWN = 5


def check_weights(files: WeightFiles, config: ModelConfig, halves: Sequence[Half], source: str) -> list[TensorSpec]:
    """Check tensor names and shapes, and return the needed tensors.

    Opens only files with tensors of these halves. Reads elements only of a separate head of a tied model.

    Args:
        files: the weight files of a checkpoint.
        config: of the model.
        halves: the halves to check.
        source: the checkpoint's name for messages.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, WRONG_HALF, MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE.
    """
    specs = check_names(files, config, halves, source)
    check_shapes(files, specs, source)
    check_names([*files, *files.unindexed()], config, halves, source)  # known now that the files are open
    if "language" in halves:
        check_tied_head(files, config, source)
    return specs


def check_names(names: Iterable[str], config: ModelConfig, halves: Sequence[Half], source: str) -> list[TensorSpec]:
    """Check tensor names, and return the needed tensors.

    A tied model may have a separate head: `check_tied_head` compares its elements.

    Raises:
        FailedPrecondition: WRONG_HALF, MISSING_TENSORS, or UNEXPECTED_TENSORS for names of neither half.
    """
    everything, held = layout(config), set(names)
    expected = [spec for spec in everything if spec.half in halves]
    missing = [spec.name for spec in expected if spec.name not in held]
    if len(missing) == len(expected) and any(half_of(name) for name in held):
        raise FailedPrecondition(
            f"Checkpoint {source} holds no tensor of the {' and '.join(halves)} half.", reason="WRONG_HALF"
        )
    if missing:
        raise _named(f"Checkpoint {source} lacks", missing, "MISSING_TENSORS")
    unexpected = sorted(held - {spec.name for spec in everything} - {HEAD})
    if unexpected:
        raise _named(
            f"Checkpoint {source} has tensors that its configuration does not ask for:",
            unexpected,
            "UNEXPECTED_TENSORS",
        )
    return expected


def check_shapes(tensors: Mapping[str, StoredTensor], specs: Sequence[TensorSpec], source: str) -> None:
    """Compare the types and shapes of tensors with a layout.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT or WRONG_SHAPE, with the names and both types or shapes.
    """
    *others, last = FLOAT_BYTES
    floats = f"{', '.join(others)} or {last}"
    strange = [
        f"{spec.name} is {tensors[spec.name].dtype}, not {spec.dtype or floats}"
        for spec in specs
        if (tensors[spec.name].dtype != spec.dtype if spec.dtype else tensors[spec.name].dtype not in FLOAT_BYTES)
    ]
    if strange:
        raise _named(
            f"Checkpoint {source} has tensors of another type than its configuration asks for:",
            strange,
            "BAD_CHECKPOINT",
        )
    wrong = [
        f"{spec.name} is {list(tensors[spec.name].shape)}, not {list(spec.shape)}"
        for spec in specs
        if tensors[spec.name].shape != spec.shape
    ]
    if wrong:
        raise _named(
            f"Checkpoint {source} has tensors of another shape than its configuration asks for:", wrong, "WRONG_SHAPE"
        )


def check_tied_head(tensors: Mapping[str, StoredTensor], config: ModelConfig, source: str) -> None:
    """Check that a tied model's separate head equals the embedding.

    Raises:
        FailedPrecondition: UNEXPECTED_TENSORS, it is another matrix.
    """
    if not config.language.tied_embeddings or HEAD not in tensors:
        return
    if tensor_digest(tensors[HEAD]) != tensor_digest(tensors[EMBEDDING]):
        raise FailedPrecondition(
            f"Tensor {HEAD} of {source} differs from {EMBEDDING}, but its configuration ties them.",
            reason="UNEXPECTED_TENSORS",
        )


def _named(problem: str, names: Sequence[str], reason: str) -> FailedPrecondition:
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return FailedPrecondition(f"{problem} {shown}.", reason=reason)
