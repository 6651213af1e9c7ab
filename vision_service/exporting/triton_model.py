"""A model of Triton's Python backend that runs an ONNX file.

It runs the file `model.onnx` beside it with ONNX Runtime.

`tandem checkpoint export --to triton-repository` copies this file into the repository as `model.py`. Triton runs it
with its own Python, so it imports nothing of Tandem. Each instance has a process of its own.
"""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as triton

_OUTPUT = "tokens"


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open a session on the instance's device."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers = [("CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])})]
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests that Triton joined, as one batch."""
        import numpy as np

        parts = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            for request in requests
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in self._inputs}
        [tokens] = self._session.run([_OUTPUT], joined)
        ends = np.cumsum([len(part[self._inputs[0]]) for part in parts])[:-1]
        return [triton.InferenceResponse([triton.Tensor(_OUTPUT, one)]) for one in np.split(tokens, ends)]
