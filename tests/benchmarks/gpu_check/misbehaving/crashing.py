"""A check whose process dies after its first row."""

import os

from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes


def run(_sizes: Sizes, rows: RowWriter) -> None:
    rows.add("before the crash", 1)
    os.abort()
