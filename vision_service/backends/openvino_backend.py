"""Run a graph with OpenVINO on a CPU.

B images of one run, N visual tokens of an image, D decoder width
"""

from pathlib import Path

import openvino
import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from vision_service.backends.interface import BackendOptions
from vision_service.model import Inputs

# Names of each precision: as a hint, and among the capabilities of a processor.
_PRECISIONS = {"float32": ("f32", "FP32"), "float16": ("f16", "FP16"), "bfloat16": ("bf16", "BF16")}


class OpenVinoGraph:
    """A graph compiled by OpenVINO.

    For latency, a batch is one run on all threads. For throughput, OpenVINO divides the threads into streams, and each
    image of a batch runs on one of them.
    """

    def __init__(self, path: Path, options: BackendOptions) -> None:
        """Compile the graph for as many threads as torch has.

        Raises:
            FailedPrecondition: UNSUPPORTED, OpenVINO cannot run the graph here.
        """
        if options.device.type != "cpu":
            raise FailedPrecondition(
                "The backend openvino computes on the CPU: choose --device cpu or another backend.",
                reason="UNSUPPORTED",
            )
        core = openvino.Core()
        hint, capability = _PRECISIONS[options.precision]
        if capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            # It would take the hint, and compute in float32.
            raise FailedPrecondition(
                f"OpenVINO cannot compute in {options.precision} on this processor: choose --precision float32 or "
                "another backend.",
                reason="UNSUPPORTED",
            )
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": options.openvino_hint.upper(),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # pinned threads would wait for a core that another process uses
        }
        try:
            self._compiled = core.compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise FailedPrecondition(
                "OpenVINO cannot compile the export: export again, or choose another backend.", reason="UNSUPPORTED"
            ) from error
        # One run at a time, or as many as there are streams.
        self._queue = openvino.AsyncInferQueue(self._compiled, 0) if options.openvino_hint == "throughput" else None
        self._request = self._compiled.create_infer_request()

    def __call__(self, inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
        """Return the visual tokens [B, N, levels x D]."""
        if self._queue is None or shape[0] == 1:
            return self._request_all(inputs)
        return self._request_each(inputs, shape)

    def _request_all(self, inputs: Inputs) -> Tensor:
        self._request.infer(inputs, share_inputs=True)
        return torch.from_numpy(self._request.get_output_tensor(0).data)

    def _request_each(self, inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
        assert self._queue is not None
        tokens_BND = torch.empty(shape)

        def keep(request: openvino.InferRequest, place: int) -> None:
            tokens_BND[place] = torch.from_numpy(request.get_output_tensor(0).data)[0]

        self._queue.set_callback(keep)
        for place in range(shape[0]):
            one = {name: array[place : place + 1] for name, array in inputs.items()}
            self._queue.start_async(one, userdata=place, share_inputs=True)
        self._queue.wait_all()
        return tokens_BND
