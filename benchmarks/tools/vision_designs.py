"""Ways to run a vision half that are compared with each other.

They are the backends of the vision service, and three more of torch: without our kernels, compiled by inductor with
frozen weights, and with weights of int8.

B images of one run, N visual tokens of each, D decoder width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.nn import functional

from checkpoint.exports import ExportKind, Precision
from checkpoint.families import ModelConfig
from checkpoint.weights import LoadedHalf, load_half
from vision_service.backends import BackendName, BackendOptions, open_backend
from vision_service.model import LinearGelu, build_graph, build_vision_model, graph_batches

Pixels = NDArray[np.float32]  # [3, height, width]
Encode = Callable[[Sequence[Pixels]], list[NDArray[np.uint16]]]  # as `VisionBackend.encode`
Export = tuple[ExportKind, Precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One way to run a vision half."""

    title: str
    open: Callable[[Path], Encode]  # takes the folder of a checkpoint
    library: str = "torch"  # module that it needs
    export: Export | None = None  # that it runs
    slow_start: bool = False  # takes minutes to open

    @property
    def is_installed(self) -> bool:
        """Whether its library is there."""
        return find_spec(self.library) is not None


def served(name: BackendName, precision: Precision, **options: Any) -> Callable[[Path], Encode]:
    """Return the opener of a backend of the vision service."""
    return lambda folder: open_backend(name, folder, BackendOptions(precision=precision, **options)).backend.encode


def plain_torch(folder: Path) -> Encode:
    """Open a half as torch runs it, without our kernels."""
    half = load_half(folder, "vision", dtype=torch.bfloat16)
    model = _model(half)

    @torch.inference_mode()
    def encode(images: Sequence[Pixels]) -> list[NDArray[np.uint16]]:
        return [_bits(tokens) for tokens in model.encode([torch.from_numpy(image).bfloat16() for image in images])]

    return encode


def compiled_torch(folder: Path) -> Encode:
    """Open a half that inductor compiles, with frozen weights."""
    half = load_half(folder, "vision", dtype=torch.bfloat16)
    inductor.freezing = True
    compiled = torch.compile(build_graph(_model(half)).eval())
    return _graph_encode(half.config, compiled)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale an output.

    The scale of its inputs is that of the whole tensor, found when it is there.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        plain: Any = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        plain.weight, plain.bias = linear.weight, linear.bias
        plain.qconfig = torch.ao.quantization.per_channel_dynamic_qconfig
        quantized: Any = torch.ao.nn.quantized.dynamic.Linear
        self._linear = quantized.from_float(plain)
        self._gelu = linear.approximate if isinstance(linear, LinearGelu) else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return [..., outputs], with GELU or residual as before."""
        out: Tensor = self._linear(x.contiguous())
        if self._gelu is not None:
            return functional.gelu(out, approximate=self._gelu)
        return out if residual is None else residual + out


def int8_torch(folder: Path) -> Encode:
    """Open a half whose linear layers have weights of int8.

    Everything else is float32.
    """
    half = load_half(folder, "vision", dtype=torch.float32)
    model = _model(half)
    use_int8(model)
    return _graph_encode(half.config, build_graph(model))


def use_int8(model: nn.Module) -> None:
    """Replace all linear layers by layers with weights of int8."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))


DESIGNS = [
    Design(title="torch", open=served("torch", "bfloat16")),
    Design(title="torch without our kernels", open=plain_torch),
    Design(title="torch compiled", open=compiled_torch, slow_start=True),
    Design(title="torch float32", open=served("torch", "float32")),
    Design(title="torch int8", open=int8_torch),
    Design(
        title="openvino",
        open=served("openvino", "bfloat16"),
        library="openvino",
        export=("openvino", "bfloat16"),
    ),
    Design(
        title="openvino, images side by side",
        open=served("openvino", "bfloat16", openvino_hint="throughput"),
        library="openvino",
        export=("openvino", "bfloat16"),
    ),
    Design(
        title="openvino float32",
        open=served("openvino", "float32"),
        library="openvino",
        export=("openvino", "float32"),
    ),
    Design(
        title="onnxruntime float32",
        open=served("onnxruntime", "float32"),
        library="onnxruntime",
        export=("onnx", "float32"),
    ),
]


def _model(half: LoadedHalf) -> Any:
    with torch.device("meta"):
        model = build_vision_model(half.config)
    model.load_state_dict(half.tensors, assign=True)
    dtype = next(iter(half.tensors.values())).dtype
    return model.to(device="cpu", dtype=dtype).eval().requires_grad_(requires_grad=False)


def _graph_encode(config: ModelConfig, graph: Callable[..., Tensor]) -> Encode:
    @torch.no_grad()  # inductor freezes weights without gradients only, and not in inference mode
    def encode(images: Sequence[Pixels]) -> list[NDArray[np.uint16]]:
        tokens: dict[int, NDArray[np.uint16]] = {}
        for batch in graph_batches(config, images):
            found_BND = graph(**{name: torch.from_numpy(array) for name, array in batch.inputs.items()})
            tokens.update(zip(batch.images, map(_bits, found_BND), strict=True))
        return [tokens[place] for place in range(len(images))]

    return encode


def _bits(tokens_ND: Tensor) -> NDArray[np.uint16]:
    return tokens_ND.to(torch.bfloat16).clone().view(torch.uint16).numpy()
