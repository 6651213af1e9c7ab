"""Name the card and measure its limits."""

import platform
from importlib.util import find_spec

import torch

from benchmarks.gpu_check.limits import matmul_peak, memory_bandwidth
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report versions, bandwidth and matrix peaks."""
    device = sizes.device
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    if find_spec("triton") is not None:
        import triton

        versions += f", Triton {triton.__version__}"
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        rows.add("memory of the card", facts.total_memory / 2**30, "GiB", note=facts.name)
        rows.add("multiprocessors", facts.multi_processor_count, note=f"capability {facts.major}.{facts.minor}")
    rows.add("versions", note=versions)
    rows.add("memory bandwidth", memory_bandwidth(device, sizes.bandwidth_bytes) / 1e9, "GB/s")
    for name, dtype in _TYPES.items():
        rows.add(f"matrix peak, {name}", matmul_peak(device, dtype, sizes.matmul_side) / 1e12, "TFLOP/s")
