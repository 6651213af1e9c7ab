"""Run one check in this process.

`python -m benchmarks.gpu_check.child MODULE NAME SIZES ROWS`
"""

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.rows import RowWriter


def main(module: str, name: str, sizes: str, rows: str) -> None:
    """Run the check and report its peak memory."""
    from benchmarks.gpu_check.sizes import SIZES  # needs the packages of the services

    writer = RowWriter(name, Path(rows))
    import_module(module).run(SIZES[sizes], writer)
    _report_memory(writer)


def _report_memory(writer: RowWriter) -> None:
    import resource

    import torch

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writer.add("peak memory of the process", kib / 2**20, "GiB")
    if torch.cuda.is_available():
        writer.add("peak GPU memory, allocated", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        writer.add("peak GPU memory, reserved", torch.cuda.max_memory_reserved() / 2**30, "GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
