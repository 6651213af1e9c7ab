"""A check that hangs after its first row, with a child."""

import os
import subprocess
import time

from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes


def run(_sizes: Sizes, rows: RowWriter) -> None:
    child = subprocess.Popen(["sleep", "600"])
    rows.add("child", child.pid)
    rows.add("group", os.getpgid(0))
    time.sleep(600)
