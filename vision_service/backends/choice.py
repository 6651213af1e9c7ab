"""The list of backends, and the functions that open one."""

from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from chassis.errors import FailedPrecondition
from checkpoint.exports import ExportKind, export_folder, read_export
from checkpoint.families import ModelConfig
from checkpoint.manifest import read_manifest, read_verified_config
from checkpoint.weights import load_half
from vision_service.backends.graph_backend import GraphBackend
from vision_service.backends.interface import BackendOptions, VisionBackend
from vision_service.backends.tensorrt_backend import open_tensorrt
from vision_service.engines import open_library
from vision_service.model import Run

BackendName = Literal["torch", "onnxruntime", "openvino", "tensorrt", "triton"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

# The export that each backend runs. The others run the checkpoint's own weights.
EXPORTS: dict[BackendName, ExportKind] = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "tensorrt": "onnx",  # engines lie beside it
    "triton": "onnx",  # in Triton's repository
}


@dataclass(frozen=True, slots=True)
class OpenedHalf:
    """A vision half with the backend that runs it."""

    config: ModelConfig
    digest: bytes  # of the vision half, 32 bytes
    backend: VisionBackend


def open_backend(name: BackendName, folder: Path, options: BackendOptions) -> OpenedHalf:
    """Load a checkpoint's vision half into a backend.

    Args:
        name: kind of backend.
        folder: of the checkpoint.
        options: how to compute.

    Raises:
        TandemError: the checkpoint cannot be used, see `load_half`. Its export is missing or cannot be used, see
            `read_export`.
        FailedPrecondition: NOT_INSTALLED, the backend's library is missing. UNSUPPORTED, it cannot run here.
            BAD_EXPORT, the export is too small for the largest batch.
    """
    if name == "torch":
        from vision_service.backends.torch_backend import TorchBackend

        half = load_half(folder, "vision", dtype=options.dtype, device=options.device)
        backend = TorchBackend(half.config, half.tensors, dtype=options.dtype, device=options.device)
        return OpenedHalf(half.config, half.digest, backend)
    manifest = read_manifest(folder)
    config = read_verified_config(folder, manifest)
    kind = EXPORTS[name]
    # An ONNX file suits any ONNX Runtime. The other forms suit the version that made them.
    tools: dict[str, str] | None = None if kind == "onnx" else {name: library_version(name)}
    export = read_export(
        folder,
        kind,
        options.precision,
        vision_digest=manifest.vision.digest,
        tools=tools,
        with_files=name not in ("tensorrt", "triton"),  # these run what was made of it
    )
    if name == "triton":
        library_version(name)
        from vision_service.backends.triton_backend import open_triton

        return OpenedHalf(config, manifest.vision.digest, open_triton(config, folder.name, export, options))
    run = open_graph(name, export_folder(folder, kind, options.precision), options)
    graph = GraphBackend(name=name, config=config, export=export, options=options, run=run)
    return OpenedHalf(config, manifest.vision.digest, graph)


def open_graph(name: BackendName, place: Path, options: BackendOptions) -> Run:
    """Open the graph in an export's folder.

    Raises:
        FailedPrecondition: NOT_INSTALLED, UNSUPPORTED.
    """
    if name == "tensorrt":
        return open_tensorrt(place, options)
    library_version(name)
    # Imported on demand, so that a process loads the libraries of its own backend only.
    match name:
        case "onnxruntime":
            from vision_service.backends.onnxruntime_backend import OnnxRuntimeGraph

            return OnnxRuntimeGraph(place / "model.onnx", options)
        case "openvino":
            from vision_service.backends.openvino_backend import OpenVinoGraph

            return OpenVinoGraph(place / "model.xml", options)
    raise ValueError(f"the backend {name!r} runs no graph")


def library_version(name: BackendName) -> str:
    """Return the version of a backend's library.

    Raises:
        FailedPrecondition: NOT_INSTALLED, or NO_TENSORRT.
    """
    if name == "tensorrt":  # or TensorRT for RTX
        return open_library().version
    module = "tritonclient" if name == "triton" else name
    if find_spec(module) is None:
        raise FailedPrecondition(
            f"The backend {name} is not installed: pip install 'tandem-serving[{name}]', or choose another backend.",
            reason="NOT_INSTALLED",
        )
    return metadata.version(module) if name == "triton" else str(import_module(module).__version__)
