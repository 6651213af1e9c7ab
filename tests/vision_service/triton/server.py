"""A real Triton, its model repository, and models that misbehave."""

import itertools
import os
import signal
import socket
import subprocess
import sysconfig
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

HOST = "127.0.0.1"
READY_S = 60.0
_numbers = itertools.count()


class TritonServer:
    """A Triton in a process group of its own."""

    def __init__(self, home: Path, repository: Path, log: Path, *, models: str = "*") -> None:
        """Prepare, without starting.

        Args:
            home: folder with the server and its Python packages, as `run` installs them.
            repository: the model repository.
            log: receives the server's output.
            models: name of the only model to load. Default: all.
        """
        self._home, self._repository, self._log, self._models = home, repository, log, models
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Start, and wait until every model is ready."""
        [program] = self._home.glob("server/pytriton/tritonserver/bin/tritonserver")
        root = program.parents[1]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program, f"--model-repository={self._repository}", f"--backend-directory={root / 'backends'}"),
                    *("--model-control-mode=explicit", f"--load-model={self._models}", "--exit-on-error=false"),
                    *(f"--grpc-address={HOST}", f"--grpc-port={self._port}"),
                    *("--allow-http=false", "--allow-metrics=false"),
                    # Names of its own, because the shared memory of a killed server stays.
                    f"--backend-config=python,shm-region-prefix-name={self._new_prefix()}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its Python models are processes of their own, killed with it
                env={
                    **os.environ,
                    # Python models load libpython, and the packages of the first `python3` in PATH.
                    "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),
                    "PATH": f"{self._home / 'python' / 'bin'}:{os.environ['PATH']}",
                },
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Kill the server and its models with SIGKILL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            for region in Path("/dev/shm").glob(f"{self._prefix}*"):
                region.unlink()

    def _new_prefix(self) -> str:
        self._prefix = f"tandem-triton-{os.getpid()}-{next(_numbers)}"
        return self._prefix

    def statistics(self, model: str, version: str) -> tuple[int, int]:
        """Return the images that a version encoded, and its runs."""
        with triton.InferenceServerClient(self.address) as client:
            [found] = client.get_inference_statistics(model, version).model_stats
        return found.inference_count, found.execution_count

    def load(self, model: str) -> None:
        with triton.InferenceServerClient(self.address) as client:
            client.load_model(model, client_timeout=READY_S)

    def unload(self, model: str) -> None:
        with triton.InferenceServerClient(self.address) as client:
            client.unload_model(model, client_timeout=READY_S)
            while client.is_model_ready(model):
                time.sleep(0.02)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + READY_S
        with triton.InferenceServerClient(self.address) as client:
            while time.monotonic() < end:
                assert self._process.poll() is None, self._log.read_text()[-3000:]
                with suppress(InferenceServerException):
                    if client.is_server_ready(client_timeout=1):
                        return
                time.sleep(0.05)
        raise AssertionError(self._log.read_text()[-3000:])


def replace_program(version: Path, body: str) -> None:
    """Let a version run other code, with the same configuration.

    Args:
        version: its folder, of the platform python.
        body: statements that return the tokens [B, N, D] of `pixels`. They may call `self.tokens(pixels)` and use
            `request` and `folder`, the version's folder.
    """
    (version / "usual.py").write_bytes((version / "model.py").read_bytes())
    (version / "model.py").write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path

            import numpy as np
            import triton_python_backend_utils as triton

            folder = Path(__file__).parent
            sys.path.insert(0, str(folder))
            import usual


            class TritonPythonModel(usual.TritonPythonModel):
                def execute(self, requests):
                    responses = []
                    for request in requests:
                        pixels = triton.get_input_tensor_by_name(request, "pixels").as_numpy()
                        tokens = self.run(request, pixels)
                        responses.append(triton.InferenceResponse([triton.Tensor("tokens", tokens)]))
                    return responses

                def tokens(self, pixels):
                    [tokens] = self._session.run(["tokens"], {"pixels": pixels})
                    return tokens

                def run(self, request, pixels):
            """
        )
        + textwrap.indent(textwrap.dedent(body), " " * 8)
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
