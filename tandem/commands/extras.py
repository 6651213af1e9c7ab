"""Refuse a command whose optional packages are missing."""

from importlib.util import find_spec

from tandem.errors import FailedPrecondition

_SERVICE = (
    *("structlog", "grpc_health", "grpc_reflection", "pydantic_settings", "uvloop"),
    *("numpy", "PIL", "jinja2", "tokenizers"),
)
# The modules that an extra of pyproject.toml installs.
MODULES = {
    "gateway": (*_SERVICE, "redis", "ahocorasick_rs", "safetensors"),
    "stages": (*_SERVICE, "torch", "llguidance"),
}


def require_extras(command: str, *extras: str) -> None:
    """Check that the packages of some extras are installed.

    Args:
        command: the command as the user typed it, for the message.
        extras: names of extras in pyproject.toml.

    Raises:
        FailedPrecondition: reason 'NOT_INSTALLED', with the line that installs them.
    """
    if all(find_spec(module) is not None for extra in extras for module in MODULES[extra]):
        return
    names = f"the extra{'s' * (len(extras) > 1)} {' and '.join(extras)}"
    raise FailedPrecondition(
        f"`{command}` needs {names}: pip install 'tandem-serving[{','.join(extras)}]'.", reason="NOT_INSTALLED"
    )
