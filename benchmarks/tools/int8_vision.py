"""The vision service with weights of int8, to measure their accuracy.

    python -m benchmarks.tools.int8_vision --models models --tags tandem-demo-v1.1.0 --precision float32
    python -m language_service --models models --tags tandem-demo-v1.1.0
    python -m gateway --models models --release tandem-demo-v1.1.0
    python -m demo.evaluate --address 127.0.0.1:50051

It takes the settings of `python -m vision_service`.
"""

from pathlib import Path

from benchmarks.tools.vision_designs import use_int8
from vision_service import __main__ as service
from vision_service import loader
from vision_service.backends import BackendName, BackendOptions, OpenedHalf, open_backend


def open_int8(name: BackendName, folder: Path, options: BackendOptions) -> OpenedHalf:
    """Open a backend of torch with weights of int8."""
    opened = open_backend("torch", folder, options)
    use_int8(opened.backend._model)  # type: ignore[attr-defined]
    return opened


if __name__ == "__main__":
    loader.open_backend = open_int8  # type: ignore[attr-defined]
    service.main()
