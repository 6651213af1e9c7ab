"""A check that raises after its first row."""

from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes


def run(_sizes: Sizes, rows: RowWriter) -> None:
    rows.at_most("missed", 2, "s", 1)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
