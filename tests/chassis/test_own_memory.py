"""Read and limit the memory of a process."""

import subprocess
import sys

from chassis.own_memory import private_bytes, resident_bytes

MIB = 2**20


def test_new_pages_are_resident_and_private() -> None:
    resident, private = resident_bytes(), private_bytes()
    pages = bytearray(b"x") * (64 * MIB)
    assert resident_bytes() - resident > 48 * MIB
    assert private_bytes() - private > 48 * MIB
    assert len(pages) == 64 * MIB


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
