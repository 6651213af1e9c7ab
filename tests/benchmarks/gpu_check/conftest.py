"""Undo what the command does to its process."""

import os
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest


@pytest.fixture(autouse=True)
def restored_paths() -> Iterator[None]:
    """Restore where this process and its children import from."""
    with patch.dict(os.environ), patch.object(sys, "path", [*sys.path]):
        yield
