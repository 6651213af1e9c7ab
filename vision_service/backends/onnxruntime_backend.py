"""Run an ONNX graph with ONNX Runtime, on CPU or GPU.

B images of one run, N visual tokens of an image, D decoder width
"""

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from vision_service.backends.interface import BackendOptions
from vision_service.model import OUTPUT, Inputs

# Types of a graph's output, with the numbers that `onnx.TensorProto` gives them.
_TYPES = {
    "tensor(float)": (torch.float32, 1),
    "tensor(float16)": (torch.float16, 10),
    "tensor(bfloat16)": (torch.bfloat16, 16),
}


class OnnxRuntimeGraph:
    """An ONNX graph in a session of ONNX Runtime."""

    def __init__(self, path: Path, options: BackendOptions) -> None:
        """Open a session with as many threads as torch has.

        Raises:
            FailedPrecondition: UNSUPPORTED, this ONNX Runtime cannot run the graph on the device.
        """
        self._device = options.device
        chosen = providers(options)
        try:
            self._session = onnxruntime.InferenceSession(path, _session_options(options), providers=chosen)
        except Exception as error:  # its error classes have no other base
            raise FailedPrecondition(
                "ONNX Runtime cannot load the export: export again, or choose another backend.", reason="UNSUPPORTED"
            ) from error
        self._output_type, self._output_number = _TYPES[self._session.get_outputs()[0].type]

    def __call__(self, inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
        """Return the visual tokens [B, N, levels x D]."""
        if self._device.type == "cpu":
            [tokens] = self._session.run([OUTPUT], inputs)
            return torch.from_numpy(tokens)
        return self._run_on_gpu(inputs, shape)

    def _run_on_gpu(self, inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
        """Run with buffers of torch.

        Results of ONNX Runtime itself cannot be bfloat16 in Python.
        """
        binding, place = self._session.io_binding(), (self._device.type, self._device.index or 0)
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        tokens = torch.empty(shape, dtype=self._output_type, device=self._device)
        torch.cuda.current_stream(self._device).synchronize()  # ONNX Runtime has a stream of its own
        for name, tensor in tensors.items():
            binding.bind_input(name, *place, inputs[name].dtype, tensor.shape, tensor.data_ptr())
        binding.bind_output(OUTPUT, *place, self._output_number, shape, tokens.data_ptr())
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return tokens


def _session_options(options: BackendOptions) -> Any:
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = torch.get_num_threads()
    session.inter_op_num_threads = 1
    # Its threads would otherwise spin between runs, and take the cores from decoding and from other processes.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.device.type != "cpu":
        session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session.log_severity_level = 3  # errors. Warnings are about the graph, and nobody can act on them
    return session


def providers(options: BackendOptions) -> list[Any]:
    """Return the providers of a session.

    Raises:
        FailedPrecondition: UNSUPPORTED, this ONNX Runtime cannot compute so.
    """
    if options.device.type == "cpu":
        if options.precision == "bfloat16":
            raise FailedPrecondition(
                "ONNX Runtime cannot compute in bfloat16 on a CPU: choose --precision float32 or another backend.",
                reason="UNSUPPORTED",
            )
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise FailedPrecondition(
            "This ONNX Runtime cannot use GPUs: install onnxruntime-gpu, or choose another backend.",
            reason="UNSUPPORTED",
        )
    return [("CUDAExecutionProvider", {"device_id": options.device.index or 0})]
