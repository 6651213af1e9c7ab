"""Memory while a decoder takes over its tensors."""

import subprocess
import sys

import pytest

PROGRAM = """
import re
from pathlib import Path
import torch
from language_service.engine.serving import ServingDecoder
from tests.language_service.small import WIDE, make_decoder

def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

config = WIDE.model_copy(update={"width": 1024, "num_layers": 8, "mlp_width": 4096})
made = {name: tensor.bfloat16() for name, tensor in make_decoder(config).state_dict().items()}
torch.empty(31 << 20, dtype=torch.uint8)  # from now on, glibc takes tensors of this size from the heap
tensors = {name: tensor.clone() for name, tensor in made.items()}
num_bytes = sum(tensor.nbytes for tensor in tensors.values())
made.clear()
Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
before = peak_bytes()
ServingDecoder(config, tensors)
print((peak_bytes() - before) / num_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_no_tensor_is_in_memory_twice() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    assert float(done.stdout) < 0.4
