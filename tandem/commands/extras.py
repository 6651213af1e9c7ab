"""Refuse a command whose optional packages are missing."""

from importlib.util import find_spec

from tandem.errors import FailedPrecondition

# The modules of each extra in pyproject.toml, those of the extras it includes left out.
MODULES = {
    "checkpoint": ("pydantic", "structlog"),
    "service": (
        *("grpc_health", "grpc_reflection", "pydantic_settings", "uvloop"),
        *("numpy", "PIL", "jinja2", "tokenizers"),
    ),
    "gateway": ("redis", "ahocorasick_rs", "safetensors"),
    "stages": ("torch", "llguidance"),
}
INCLUDES = {
    "checkpoint": ("checkpoint",),
    "gateway": ("checkpoint", "service", "gateway"),
    "stages": ("checkpoint", "service", "stages"),
}


def require_extras(command: str, *extras: str) -> None:
    """Check that the packages of some extras are installed.

    Args:
        command: the command as the user typed it, for the message.
        extras: names of extras in pyproject.toml.

    Raises:
        FailedPrecondition: reason 'NOT_INSTALLED', with the line that installs them.
    """
    modules = {module for extra in extras for part in INCLUDES[extra] for module in MODULES[part]}
    if all(find_spec(module) is not None for module in modules):
        return
    names = f"the extra{'s' * (len(extras) > 1)} {' and '.join(extras)}"
    raise FailedPrecondition(
        f"`{command}` needs {names}: pip install 'tandem-serving[{','.join(extras)}]'.", reason="NOT_INSTALLED"
    )
