"""Say what to install for an extra."""

from importlib.util import find_spec

_PROCESSOR = ("numpy", "PIL", "jinja2", "tokenizers")
_SERVICE = ("structlog", "grpc_health", "grpc_reflection", "pydantic_settings", "uvloop", "uvicorn", *_PROCESSOR)
# The modules that an extra of pyproject.toml installs.
MODULES = {
    "processor": _PROCESSOR,
    "gateway": (*_SERVICE, "redis", "ahocorasick_rs", "safetensors"),
    "http": (
        *("structlog", "grpc_health", "pydantic_settings", "uvloop"),
        *("starlette", "uvicorn", "httptools", "httpcore2", "python_multipart"),
    ),
    "stages": (*_SERVICE, "torch", "llguidance"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "triton": ("tritonclient", "packaging"),
    "export": (*_SERVICE, "torch", "llguidance", "onnx", "onnxscript", "onnxruntime"),
}


def are_installed(*extras: str) -> bool:
    """Return whether the packages of some extras are installed."""
    return all(find_spec(module) is not None for extra in extras for module in MODULES[extra])


def require_extras(command: str, *extras: str) -> None:
    """Check that the packages of some extras are installed.

    If not, exits with status 1 and a sentence on stderr that says what to install.

    Args:
        command: the command as the user typed it, for the sentence.
        extras: names of extras in pyproject.toml.
    """
    if are_installed(*extras):
        return
    names = f"the extra{'s' * (len(extras) > 1)} {' and '.join(extras)}"
    raise SystemExit(f"{command} needs {names}: pip install 'tandem-serving[{','.join(extras)}]'.")
