"""Memory while a decoder takes over its tensors and packs them."""

import subprocess
import sys

import pytest

TAKING_OVER = """
import torch
from language_service.engine.serving import ServingDecoder
from tests.language_service.small import WIDE, make_decoder
from tests.own_peak import forget_peak, peak_bytes

config = WIDE.model_copy(update={"width": 1024, "num_layers": 8, "mlp_width": 4096})
made = {name: tensor.bfloat16() for name, tensor in make_decoder(config).state_dict().items()}
torch.empty(31 << 20, dtype=torch.uint8)  # from now on, glibc takes tensors of this size from the heap
tensors = {name: tensor.clone() for name, tensor in made.items()}
num_bytes = sum(tensor.nbytes for tensor in tensors.values())
made.clear()
before = forget_peak()
ServingDecoder(config, tensors)
print((peak_bytes() - before) / num_bytes)
"""
PACKING = """
from concurrent.futures import ThreadPoolExecutor
import torch
from checkpoint.lowbit import LowBitWeight
from language_service.kernels.low_bit_packing import pack
from tests.own_peak import forget_peak, peak_bytes

values = torch.ones(1 << 17, 1024, dtype=torch.int8)
weight = LowBitWeight("w8a8", values, torch.ones(len(values), 1), None, values.shape[1])
pack(LowBitWeight("w8a8", values[:64], weight.scales[:64], None, weight.group))  # loads what it needs
before = forget_peak()
with ThreadPoolExecutor(1) as pool:  # as in the service: glibc's heap of a thread reuses less
    pool.submit(pack, weight).result()
print((peak_bytes() - before) / weight.nbytes)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def run(program: str) -> float:
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)


def test_no_tensor_is_in_memory_twice() -> None:
    assert run(TAKING_OVER) < 0.4


def test_packing_8_bits_takes_the_memory_of_the_panels() -> None:
    assert run(PACKING) < 1.3
