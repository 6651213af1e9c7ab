"""Open the compiled attention, if the processor can run it.

Installing the package builds it if there is a compiler. Without it, torch computes the same at half the speed.
"""

import ctypes
from functools import cache

import structlog
import torch
from torch import Tensor

from chassis.native_library import find_functions, open_native_library
from vision_service.model import Attend

_log = structlog.get_logger()


@cache
def open_native_attention() -> Attend | None:
    """Return the compiled attention for bfloat16, or None without it.

    Logs the reason once.
    """
    try:
        [function] = find_functions(open_native_library("vision_service.kernels"), "avx512bf16", "image_attention")
    except OSError as error:
        _log.info("native attention not used", reason=str(error))
        return None
    function.argtypes = [*[ctypes.c_void_p] * 5, *[ctypes.c_long] * 3, ctypes.c_int]
    function.restype = None

    def attend(qkv_P3HE: Tensor, cos_P1F: Tensor, sin_P1F: Tensor, lengths: list[int]) -> Tensor:
        num_patches, _, num_heads, head_dim = qkv_P3HE.shape
        # Kept until the call returns: a pointer alone does not keep its memory.
        inputs = [tensor.contiguous() for tensor in (qkv_P3HE, cos_P1F, sin_P1F)]
        out_PW = torch.empty(num_patches, num_heads * head_dim, dtype=torch.bfloat16)
        function(
            *(tensor.data_ptr() for tensor in inputs),
            (ctypes.c_int64 * len(lengths))(*lengths),
            out_PW.data_ptr(),
            len(lengths),
            num_heads,
            head_dim,
            torch.get_num_threads(),
        )
        return out_PW

    return attend
