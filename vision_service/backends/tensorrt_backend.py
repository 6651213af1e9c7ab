"""Run an ONNX export as a TensorRT engine on a GPU.

Large batches are divided among lanes: while one computes, the other copies. The lanes themselves have not run yet.
The rest of this module is tested without a GPU.

B images of one run, N visual tokens of an image, D decoder width
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.exports import read_record
from vision_service.backends.interface import BackendOptions
from vision_service.backends.tensorrt_lane import Lane
from vision_service.engines import (
    ENGINES_FOLDER,
    EngineKey,
    EngineRecord,
    Library,
    ShapeRange,
    find_engine,
    load_engine,
    open_library,
    without_collection,
)
from vision_service.model import Inputs

_NUM_LANES = 2
_MIN_PART = 4  # images. Smaller parts would cost more than the overlap saves


class TensorRtGraph:
    """An engine on several CUDA streams."""

    def __init__(self, library: Library, record: EngineRecord, plan: bytes, device: torch.device) -> None:
        """Load an engine.

        Args:
            library: the one that built it.
            record: of the engine.
            plan: the engine itself.
            device: the GPU.

        Raises:
            FailedPrecondition: UNSUPPORTED, the device is no GPU. BAD_ENGINE, the library rejects the engine.
        """
        if device.type != "cuda":
            raise FailedPrecondition(
                "The backend tensorrt computes on GPUs: choose --device cuda or another backend.", reason="UNSUPPORTED"
            )
        with torch.cuda.device(device), without_collection():
            self._engine = load_engine(library, plan)
            sizes = graph_sizes(record.profile)
            self._lanes = [
                Lane(library, self._engine.engine, record, device=device, graph_sizes=sizes) for _ in range(_NUM_LANES)
            ]

    def __call__(self, inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
        """Return the visual tokens [B, N, levels x D].

        Raises:
            RuntimeError: CUDA or the library reports a failure.
        """
        tokens_BND = torch.empty(shape, dtype=torch.bfloat16)
        running = []
        try:
            for lane, part in zip(self._lanes, parts(shape[0], len(self._lanes)), strict=False):
                running.append((lane, part))
                lane.launch({name: array[part] for name, array in inputs.items()})
            for lane, part in running:
                tokens_BND[part] = lane.collect((part.stop - part.start, *shape[1:]))
        except RuntimeError:
            for lane, _ in running:  # so that no lane still reads its buffers in the next run
                lane.stop()
            raise
        return tokens_BND


def open_tensorrt(place: Path, options: BackendOptions) -> TensorRtGraph:
    """Load the engine of this GPU and library version.

    Args:
        place: folder of the ONNX export, which holds its engines, too.
        options: the GPU and the largest batch.

    Raises:
        FailedPrecondition: NO_TENSORRT, UNSUPPORTED, NO_ENGINE or BAD_ENGINE. BAD_EXPORT, the engine is too small for
            the largest batch.
        DataLoss: DIGEST_MISMATCH, the engine was changed or cut short.
    """
    library = open_library()
    key = engine_key(library, read_record(place).digest, options.device)
    record, plan = find_engine(place / ENGINES_FOLDER, key)
    check_limits(record, options)
    return TensorRtGraph(library, record, plan, options.device)


def engine_key(library: Library, onnx_digest: bytes, device: torch.device | None) -> EngineKey:
    """Return the key of the engine for a GPU.

    Args:
        library: builds or runs the engine.
        onnx_digest: of the ONNX export.
        device: the GPU. Engines of a portable library fit every GPU.

    Raises:
        FailedPrecondition: NO_GPU, the library's engines fit one kind of GPU, and there is none.
    """
    if library.is_portable:
        return EngineKey.portable(library, onnx_digest)
    if device is None or device.type != "cuda":
        raise FailedPrecondition(
            f"{library.name} needs an NVIDIA GPU: run this on a machine that has one, with --device cuda.",
            reason="NO_GPU",
        )
    major, minor = torch.cuda.get_device_capability(device)
    return EngineKey(
        library=library.name,
        version=library.version,
        gpu=torch.cuda.get_device_name(device),
        compute_capability=f"{major}.{minor}",
        onnx_digest=onnx_digest.hex(),
    )


def check_limits(record: EngineRecord, options: BackendOptions) -> None:
    """Check that an engine takes the largest batch.

    Raises:
        FailedPrecondition: BAD_EXPORT.
    """
    limits = [("images", min(shapes.max[0] for shapes in record.profile.values()), options.max_batch_size)]
    if "patches" in record.profile:  # [B, patches, pixels x 3]
        _, largest, num_values = record.profile["patches"].max
        limits.append(("patches of an image", largest, options.max_resized_pixels * 3 // num_values))
    for unit, largest, needed in limits:
        if largest < needed:
            raise FailedPrecondition(
                f"The engine takes at most {largest} {unit}, and batches may have {needed}: lower the limits of the "
                "service, or export again with larger ones.",
                reason="BAD_EXPORT",
            )


def parts(batch_size: int, num_lanes: int) -> Iterator[slice]:
    """Yield the images of each lane, at most `num_lanes` slices."""
    size = max(_MIN_PART, -(-batch_size // num_lanes))
    for start in range(0, batch_size, size):
        yield slice(start, min(start + size, batch_size))


def graph_sizes(profile: Mapping[str, ShapeRange]) -> list[int]:
    """Return the batch sizes with a CUDA graph, ascending.

    Powers of two below the largest, and the largest. Other batches are padded to the next one. None for images of any
    size, whose shapes are too many.
    """
    if any(shapes.min[1:] != shapes.max[1:] for shapes in profile.values()):
        return []
    largest = min(shapes.max[0] for shapes in profile.values())
    return [1 << power for power in range((largest - 1).bit_length())] + [largest]
