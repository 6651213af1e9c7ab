"""A language service whose steps fail while a file exists.

TANDEM_TEST_BROKEN=FILE python -m tests.k8s.static.broken_language FLAGS
"""

import os
from pathlib import Path
from typing import Any

from language_service.__main__ import main
from language_service.engine.runner import Runner

_forward = Runner.forward


def forward(self: Runner, *arguments: Any, **options: Any) -> Any:
    """Compute a step, or fail as broken memory would."""
    if Path(os.environ["TANDEM_TEST_BROKEN"]).exists():
        raise RuntimeError("an error was injected into this step")
    return _forward(self, *arguments, **options)


if __name__ == "__main__":
    vars_of_runner: Any = Runner
    vars_of_runner.forward = forward
    main()
