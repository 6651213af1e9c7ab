"""Run the `tandem` command in this process, which coverage measures."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from tandem.commands import main


def run(*arguments: str | Path, address: str = "127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    """Run the command with its output captured."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    environment = patch.dict(os.environ, {"TANDEM_ADDRESS": address})
    arguments_of_process = patch.object(sys, "argv", ["tandem", *map(str, arguments)])
    with arguments_of_process, environment, redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess([*map(str, arguments)], code, stdout.getvalue(), stderr.getvalue())
