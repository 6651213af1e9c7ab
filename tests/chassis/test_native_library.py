"""Memory of C's library."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, threading
from chassis.native_library import use_one_heap
if {is_called}:
    use_one_heap()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
barrier = threading.Barrier(4)
def allocate():
    libc.malloc(10_000)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of glibc")
@pytest.mark.parametrize("is_called", [True, False])
def test_threads_share_one_heap(is_called: bool) -> None:
    """Without the call, each thread has its own."""
    command = [sys.executable, "-c", PROGRAM.format(is_called=is_called)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    num_heaps = ran.stdout.count("<heap ")
    assert num_heaps == 1 if is_called else num_heaps > 1
