"""Compile the GPU kernels for a GPU that is not there.

`python -m tests.language_service.kernels.compile_for_gpu CAPABILITY` prints a line of JSON for each kernel.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from language_service.kernels import triton_attention, triton_chunks, triton_kernels

_ALIGNED = ("q_stride", "value_offset", "row_stride", "width")

Kernel = tuple[Any, dict[str, str], dict[str, Any]]  # function, types of its arguments, constants


def kernels(dtype: str) -> Iterator[Kernel]:
    """Yield every kernel with the shapes of the full-size decoder."""
    data, floats, integers = f"*{dtype}", "*fp32", "*i64"
    attend = {
        "q_NHE": data,
        "kv_2PSGE": data,
        "tables_NM": integers,
        "lengths_N": integers,
        "out_NHE": data,
        "sums_NHKE": floats,
        "scales_NHK2": floats,
        "scale": "fp32",
        "q_stride": "i32",
        "value_offset": "i64",
        "table_width": "i32",
        "num_parts": "i32",
    }
    shape = {"num_kv_heads": 8, "group_size": 4, "num_rows": 16, "head_dim": 128, "block_size": 16}
    for is_split in (False, True):
        yield triton_attention._attend_part, attend, {**shape, "tile": triton_attention.TILE, "is_split": is_split}
    # Triton makes arguments of 1 constants: one part, and a table of one block.
    ones = dict.fromkeys(("table_width", "num_parts"), 1)
    types = {name: each for name, each in attend.items() if name not in ones}
    yield triton_attention._attend_part, types, {**ones, **shape, "tile": triton_attention.TILE, "is_split": False}
    join = {"sums_NHKE": floats, "scales_NHK2": floats, "out_NHE": data}
    yield triton_attention._join_parts, join, {"num_parts": 64, "head_dim": 128}
    chunks = {
        "q_THE": data,
        "kv_2PSGE": data,
        "tables_NM": integers,
        "tiles_I4": integers,
        "out_THE": data,
        "scale": "fp32",
        "q_stride": "i32",
        "value_offset": "i64",
        "table_width": "i32",
    }
    shape = {"num_kv_heads": 8, "group_size": 4, "padded_group": 4, "num_tokens": 16, "head_dim": 128, "block_size": 16}
    yield triton_chunks._attend_chunks, chunks, {**shape, "tile": 64 if dtype == "bf16" else 32}
    norm = {"x_TD": data, "weight_D": data, "out_TD": data, "width": "i32", "eps": "fp32"}
    yield triton_kernels._rms_norm, norm, {"padded": 4096}
    rotate = {"x_THE": data, "weight_E": data, "cos_TF": floats, "sin_TF": floats, "row_stride": "i32", "eps": "fp32"}
    for has_weight in (False, True):
        yield triton_kernels._rotate_heads, rotate, {"half": 64, "has_weight": has_weight}
    place = {
        "qkv_TX": data,
        "q_norm_E": data,
        "k_norm_E": data,
        "cos_TF": floats,
        "sin_TF": floats,
        "kv_2PSGE": data,
        "slots_T": integers,
        "row_stride": "i32",
        "value_offset": "i64",
        "eps": "fp32",
    }
    for has_norm in (False, True):
        constants = {"num_heads": 32, "num_kv_heads": 8, "half": 64, "has_norm": has_norm}
        yield triton_kernels._place_heads, place, constants
    yield triton_kernels._swiglu, {"x_TM": data, "out": data, "width": "i32"}, {"size": 1024}


def main(capability: int) -> None:
    """Compile all of them and print their sizes."""
    for dtype in ("bf16", "fp32"):
        for kernel, types, constants in kernels(dtype):
            signature = {**types, **dict.fromkeys(constants, "constexpr")}
            assert list(signature) == kernel.arg_names, kernel
            fixed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            # As at a launch: tensors and their strides are multiples of 16, so loads are wide.
            aligned = [name for name, each in types.items() if each.startswith("*") or name in _ALIGNED]
            attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
            source = ASTSource(kernel, signature, fixed, attributes)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            facts = {"name": made.metadata.name, "shared": made.metadata.shared, "bytes": len(made.asm["cubin"])}
            print(json.dumps({**facts, "async_copies": made.asm["ptx"].count("cp.async.cg")}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
