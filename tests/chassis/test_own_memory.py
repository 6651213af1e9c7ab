"""Read and limit the memory of a process."""

import subprocess
import sys

from chassis.own_memory import resident_bytes, touched_bytes

MIB = 2**20


def test_new_pages_are_resident_and_touched() -> None:
    resident, touched = resident_bytes(), touched_bytes()
    pages = bytearray(b"x") * (64 * MIB)
    assert resident_bytes() - resident > 48 * MIB
    assert touched_bytes() - touched > 48 * MIB
    assert len(pages) == 64 * MIB


def test_a_copy_of_a_process_has_touched_only_what_it_changed() -> None:
    program = f"""
import os
from chassis.own_memory import touched_bytes
pages = bytearray(b"x") * {64 * MIB}
if os.fork() == 0:
    before = touched_bytes()
    for at in range(0, {16 * MIB}, 4096):
        pages[at] = 0
    print(before, touched_bytes() - before, flush=True)
    os._exit(0)
os.wait()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, change = map(int, result.stdout.split())
    assert before < 8 * MIB
    assert 16 * MIB <= change < 24 * MIB


def test_allocations_beyond_the_limit_fail() -> None:
    program = f"""
from chassis.own_memory import limit_memory
limit_memory({64 * MIB})
small = bytearray({32 * MIB})
try:
    large = bytearray({64 * MIB})
except MemoryError:
    print("refused")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "refused\n"
