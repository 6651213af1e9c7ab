"""A check that hangs after its first row, with a child."""

import os
import subprocess
import sys
import time

from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes


def run(_sizes: Sizes, rows: RowWriter) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    rows.add("child", child.pid)
    rows.add("group", os.getpgid(0))
    time.sleep(600)
