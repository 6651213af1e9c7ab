"""Write a vision half as an ONNX file.

B images, p patches of each
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

from checkpoint.families import ModelConfig, Qwen3VLConfig, ResamplerModelConfig
from vision_service.model import OUTPUT, build_graph, build_vision_model, dynamic_dimensions, graph_batches

ONNX_FILE = "model.onnx"
OPSET = 20  # the first with GELU as one operator


def write_onnx(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the graph of a vision half.

    The weights keep their type. They go to a file of their own beside it, because a graph can have 2 GB at most.

    Args:
        config: of the model.
        tensors: the vision half by canonical name, all of one type.
        path: of the new file.
    """
    with torch.device("meta"):
        half = build_vision_model(config)
    half.load_state_dict(tensors, assign=True)
    half.to(dtype=next(iter(tensors.values())).dtype).eval()
    graph = build_graph(half).requires_grad_(requires_grad=False)
    [example] = graph_batches(config, example_images(config))
    inputs = {name: torch.from_numpy(array) for name, array in example.inputs.items()}
    with _quiet_export():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=_dynamic_shapes(config),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=True)
    onnx.checker.check_model(path)


def example_images(config: ModelConfig) -> list[NDArray[np.float32]]:
    """Return two images as example input of a graph.

    Their sizes differ from each other, and from 1: torch would take those for constants.
    """
    if isinstance(config, Qwen3VLConfig):
        cell = config.vision.cell_size
        return [np.zeros((3, 2 * cell, 3 * cell), np.float32)] * 2
    assert isinstance(config, ResamplerModelConfig)
    side = config.vision.image_size
    return [np.zeros((3, side, side), np.float32)] * 2


def widen(source: Path, target: Path) -> None:
    """Write a bfloat16 graph with the same weights in float32.

    For libraries that cannot compute in bfloat16. Its results differ by the rounding between the operators.
    """
    model = onnx.load(source)
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    for value in (*model.graph.value_info, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data")


def _dynamic_shapes(config: ModelConfig) -> dict[str, dict[int, object]]:
    """Return the dynamic dimensions, as `torch.onnx.export` takes them."""
    batch = torch.export.Dim("batch")
    patches = (
        config.vision.merge_size**2 * torch.export.Dim("visual_tokens") if isinstance(config, Qwen3VLConfig) else None
    )
    sizes = {"batch": batch, "patches": patches}
    return {
        name: {dimension: sizes[size] for dimension, size in dimensions.items()}
        for name, dimensions in dynamic_dimensions(config).items()
    }


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Silence the warnings of torch about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
