"""The fixture that serves handlers on a real server."""

from tests.serving import serve

__all__ = ["serve"]
