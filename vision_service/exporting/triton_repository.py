"""Add a vision half to a model repository of Triton.

Layout: `<folder>/<name of the tag>/config.pbtxt` and `<folder>/<name of the tag>/<version>/`, where the version of
v1.2.3 is 1002003. Triton has one configuration for all versions of a model.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as messages
from tritonclient.utils import np_to_triton_dtype

from chassis.atomic_file import write_atomically
from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.exports import Export, export_folder, verify_file
from checkpoint.families import ModelConfig
from checkpoint.manifest import read_manifest, read_verified_config
from checkpoint.tags import Tag, parse_tag
from vision_service.backends import (
    BackendOptions,
    check_limits,
    digest_parameter,
    engine_key,
    triton_version,
)
from vision_service.engines import ENGINES_FOLDER, find_engine, open_library
from vision_service.exporting.export import OnStep
from vision_service.exporting.onnx_export import onnx_export
from vision_service.exporting.onnx_file import ONNX_FILE, example_images
from vision_service.exporting.target import ExportOptions
from vision_service.exporting.triton_settings import TritonPlatform, TritonSettings
from vision_service.model import OUTPUT, dynamic_dimensions, graph_batches

CONFIG_FILE = "config.pbtxt"
PLAN_FILE = "model.plan"
PYTHON_FILE = "model.py"
_PYTHON_MODEL = Path(__file__).with_name("triton_model.py")

_DYNAMIC = -1
_TOKEN_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
_PROGRAMS: dict[TritonPlatform, dict[str, str]] = {
    "onnxruntime": {"backend": "onnxruntime", "default_model_filename": ONNX_FILE},
    "tensorrt_plan": {"platform": "tensorrt_plan", "default_model_filename": PLAN_FILE},
    "python": {"backend": "python", "default_model_filename": PYTHON_FILE},
}


def export_triton(
    folder: Path,
    repository: Path,
    settings: TritonSettings,
    options: ExportOptions,
    on_step: OnStep = lambda _: None,
) -> Path:
    """Add a checkpoint, and export to ONNX first if needed.

    The platform tensorrt_plan takes the engine for this machine's GPU and version of TensorRT, so run it where Triton
    runs.

    Args:
        folder: of the checkpoint.
        repository: folder of the model repository.
        settings: how Triton runs the model.
        options: how to export.
        on_step: called at the start of each step.

    Returns:
        The folder of the new version.

    Raises:
        TandemError: as `export_vision`, `find_engine` and `add_to_repository`.
    """
    export = onnx_export(folder, options, on_step)
    place = export_folder(folder, "onnx", options.precision)
    plan = None
    if settings.platform == "tensorrt_plan":
        library = open_library("tensorrt")  # Triton has no platform for TensorRT for RTX
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
        record, plan = find_engine(place / ENGINES_FOLDER, engine_key(library, export.digest, device))
        limits = BackendOptions(max_batch_size=settings.max_batch_size, max_resized_pixels=options.max_resized_pixels)
        check_limits(record, limits)
    on_step("copying to the repository")
    config = read_verified_config(folder, read_manifest(folder))
    return add_to_repository(repository, parse_tag(folder.name), config, export, place, settings, plan=plan)


def add_to_repository(
    folder: Path,
    tag: Tag,
    config: ModelConfig,
    export: Export,
    place: Path,
    settings: TritonSettings,
    *,
    plan: bytes | None = None,
) -> Path:
    """Add one version, and return its folder.

    A version appears complete or not at all.

    Args:
        folder: the model repository. It may have other models and versions.
        tag: of the checkpoint. Its name becomes the model's, its numbers the version.
        config: of the checkpoint.
        export: record of the ONNX export.
        place: folder of the ONNX export.
        settings: how Triton runs the model.
        plan: the engine, for the platform tensorrt_plan.

    Raises:
        InvalidArgument: BAD_TAG, the version cannot be written as a number. UNSUPPORTED, the platform cannot run the
            export.
        FailedPrecondition: VERSION_EXISTS, this version has other weights. REPOSITORY_DIFFERS, other versions of the
            model run with other settings. BAD_REPOSITORY, the configuration cannot be read.
        DataLoss: DIGEST_MISMATCH, a file of the export was changed.
    """
    if settings.platform == "python" and export.precision == "bfloat16":
        raise InvalidArgument(
            "The platform python cannot return bfloat16: choose --precision float32 or float16, or another platform.",
            reason="UNSUPPORTED",
        )
    version, model = triton_version(tag), folder / tag.name
    written = _merged(model / CONFIG_FILE, model_config(tag, config, export, settings))
    files = _files(export, place, settings.platform)
    with _new_version(model / version) as partial:
        if plan is not None:
            (partial / PLAN_FILE).write_bytes(plan)
        for path in files:
            shutil.copyfile(path, partial / (PYTHON_FILE if path == _PYTHON_MODEL else path.name))
    write_atomically(model / CONFIG_FILE, text_format.MessageToString(written).encode())
    return model / version


def _files(export: Export, place: Path, platform: TritonPlatform) -> list[Path]:
    """Return the files to copy, verified."""
    if platform == "tensorrt_plan":
        return []
    for name in export.files:
        verify_file(place, export, name)
    return [*(place / name for name in export.files), *([_PYTHON_MODEL] if platform == "python" else [])]


@contextmanager
def _new_version(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes a version."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial.", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it readable by its owner only
        shutil.rmtree(target, ignore_errors=True)  # the same export, or a version that no configuration names
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def model_config(tag: Tag, config: ModelConfig, export: Export, settings: TritonSettings) -> Any:
    """Return the `ModelConfig` message of a model with one version."""
    [example] = graph_batches(config, example_images(config)[:1])
    inputs = [
        messages.ModelInput(
            name=name,
            data_type=f"TYPE_{np_to_triton_dtype(example.inputs[name].dtype)}",
            dims=_dims(example.inputs[name].shape, dynamic),
        )
        for name, dynamic in dynamic_dimensions(config).items()
    ]
    dims = [config.num_visual_tokens or _DYNAMIC, config.token_width]
    parameters = {digest_parameter(triton_version(tag)): export.digest.hex(), "threads": str(settings.threads)}
    return messages.ModelConfig(
        name=tag.name,
        **_PROGRAMS[settings.platform],
        max_batch_size=settings.max_batch_size,
        version_policy=messages.ModelVersionPolicy(all=messages.ModelVersionPolicy.All()),
        input=inputs,
        output=[messages.ModelOutput(name=OUTPUT, data_type=_TOKEN_TYPES[export.precision], dims=dims)],
        instance_group=[messages.ModelInstanceGroup(count=settings.instances, kind=f"KIND_{settings.kind.upper()}")],
        dynamic_batching=_batching(settings),
        parameters={name: messages.ModelParameter(string_value=value) for name, value in parameters.items()},
    )


def _dims(shape: Sequence[int], dynamic: Mapping[int, str]) -> list[int]:
    """Return the lengths of one image's tensor, without the batch."""
    return [_DYNAMIC if dimension in dynamic else length for dimension, length in enumerate(shape)][1:]


def _batching(settings: TritonSettings) -> Any:
    """Return how requests are joined, and rejected after their timeout."""
    policy = messages.ModelQueuePolicy(
        timeout_action=messages.ModelQueuePolicy.REJECT,
        allow_timeout_override=True,
        max_queue_size=settings.max_queue,
    )
    return messages.ModelDynamicBatching(
        max_queue_delay_microseconds=round(1000 * settings.max_wait_ms), default_queue_policy=policy
    )


def _merged(path: Path, new: Any) -> Any:
    """Return the configuration of all versions, with the new one.

    Only the digests of exports differ between versions.
    """
    if not path.exists():
        return new
    try:
        old = text_format.Parse(path.read_text(), messages.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise FailedPrecondition(
            f"The file {CONFIG_FILE} of {new.name} in the repository cannot be read.",
            reason="BAD_REPOSITORY",
            where=path,
        ) from error
    merged = messages.ModelConfig()
    merged.CopyFrom(new)
    for name, value in list(old.parameters.items()):
        if not name.startswith(digest_parameter("")):
            continue
        if name in new.parameters and new.parameters[name] != value:
            raise FailedPrecondition(
                f"The repository has this version of {new.name} with other weights: versions are never overwritten.",
                reason="VERSION_EXISTS",
                where=path,
            )
        merged.parameters[name].CopyFrom(value)
        del old.parameters[name]
    bare = messages.ModelConfig()
    bare.CopyFrom(new)
    for name in [name for name in bare.parameters if name.startswith(digest_parameter(""))]:
        del bare.parameters[name]
    if bare != old:
        raise FailedPrecondition(
            f"The repository serves other versions of {new.name} with other settings or of another shape: pass the "
            "same settings, or choose another folder.",
            reason="REPOSITORY_DIFFERS",
            where=path,
        )
    return merged
