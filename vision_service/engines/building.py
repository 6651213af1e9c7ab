"""Build an engine from an ONNX file.

Networks are strongly typed: each operator computes in the types of the graph. TensorRT 11 and TensorRT for RTX know no
other kind, TensorRT 10 needs a flag.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.errors import FailedPrecondition
from vision_service.engines.library import Library, make_logger, without_collection

_MAX_PROBLEMS = 3  # of the library, in an error

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes of one input that an engine accepts.

    It is fastest at `opt`.
    """

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A serialized engine."""

    plan: bytes
    timing_cache: bytes  # makes the next build faster. Empty for TensorRT for RTX, which has none
    build_s: float


@without_collection()
def build_engine(
    library: Library, onnx: Path, ranges: Mapping[str, ShapeRange], *, timing_cache: bytes = b""
) -> BuiltEngine:
    """Build an engine with one optimisation profile.

    Args:
        library: builds for its own version, and TensorRT also for the present GPU only.
        onnx: the model. Its external weights lie beside it.
        ranges: by name, of every input with a dynamic shape.
        timing_cache: of an earlier build on the same GPU with the same library. Another one is ignored.

    Raises:
        FailedPrecondition: reason 'ONNX_REJECTED', with the parser's text. 'BAD_PROFILE', a range is missing, names no
            input or does not fit. 'NO_GPU', this library builds on a GPU only. 'BUILD_FAILED', with the library's text.
    """
    started = time.perf_counter()
    trt, logger = library.module, make_logger(library)
    builder = _make_builder(library, logger)
    network = builder.create_network(_network_flags(trt))
    parser = _parse(trt, logger, network, onnx)
    config = builder.create_builder_config()
    _add_profile(builder, config, network, ranges)
    cache = None if library.is_portable else _set_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    del parser  # it owns weights of the network until here
    if plan is None:
        raise FailedPrecondition(
            f"The engine could not be built: {_problems(logger.errors)}.", reason="BUILD_FAILED", where=onnx
        )
    timings = bytes(cache.serialize()) if cache is not None else b""
    return BuiltEngine(bytes(plan), timings, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """A deserialized engine, with the parts that must outlive it."""

    engine: Any
    runtime: Any
    logger: Any


@without_collection()
def load_engine(library: Library, plan: bytes) -> LoadedEngine:
    """Deserialize an engine on the current GPU.

    Raises:
        FailedPrecondition: reason 'BAD_ENGINE', with the library's text.
    """
    logger = make_logger(library)
    runtime = library.module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise FailedPrecondition(
            f"{library.name} rejects the engine, so export it again: {_problems(logger.errors)}.", reason="BAD_ENGINE"
        )
    return LoadedEngine(engine, runtime, logger)


def _make_builder(library: Library, logger: Any) -> Any:
    try:
        builder = library.module.Builder(logger)
    except TypeError as error:  # pybind11 reports a null pointer so, after the reason went to the logger
        raise FailedPrecondition(
            f"{library.name} builds engines on a machine with an NVIDIA GPU only: {_problems(logger.errors)}.",
            reason="NO_GPU",
        ) from error
    return builder


def _network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: Any, logger: Any, network: Any, onnx: Path) -> Any:
    """Fill the network and return the parser."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx)) and network.num_outputs:  # an empty file is a graph to it
        return parser
    problems = [_parser_text(parser.get_error(index)) for index in range(parser.num_errors)]
    raise FailedPrecondition(
        f"The ONNX parser rejects the model: {_problems(problems or logger.errors)}.",
        reason="ONNX_REJECTED",
        where=onnx,
    )


def _parser_text(error: Any) -> str:
    return f"{error.desc()} (operator {error.node_operator()} of node {error.node_name() or error.node()})"


def _add_profile(builder: Any, config: Any, network: Any, ranges: Mapping[str, ShapeRange]) -> None:
    """Add the profile of all dynamic inputs.

    Checked here, because the library answers a missing or wrong profile with None.
    """
    shapes = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    dynamic = {name for name, shape in shapes.items() if -1 in shape}
    if dynamic != ranges.keys():
        raise _bad_profile(f"the dynamic inputs are {_names(dynamic)}, and shapes are given for {_names(set(ranges))}")
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for name, shape_range in ranges.items():
        if not _fits(shapes[name], shape_range):
            raise _bad_profile(f"input {name} has the shape {list(shapes[name])}, which {shape_range} does not fit")
        profile.set_shape(name, shape_range.min, shape_range.opt, shape_range.max)
    if config.add_optimization_profile(profile) < 0:
        raise _bad_profile("the library rejects it")


def _fits(shape: Shape, shape_range: ShapeRange) -> bool:
    """Return whether lengths ascend, and fixed ones are kept."""
    columns = zip(shape, shape_range.min, shape_range.opt, shape_range.max, strict=False)
    return {len(shape_range.min), len(shape_range.opt), len(shape_range.max)} == {len(shape)} and all(
        0 < low <= mid <= high and (length == -1 or low == high == length) for length, low, mid, high in columns
    )


def _set_timing_cache(config: Any, stored: bytes) -> Any:
    """Return the config's timing cache, None if it has none.

    The library compares the header of a stored cache with itself and the GPU.
    """
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            return None
    return cache


def _bad_profile(problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"The optimisation profile is wrong: {problem}.", reason="BAD_PROFILE")


def _problems(texts: list[str]) -> str:
    """Return the first problems as one line."""
    lines = [" ".join(text.split()).removesuffix(".") for text in texts[:_MAX_PROBLEMS]]
    return "; ".join(lines) or "the library gives no reason"


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
