"""Open the compiled kernels of one instruction set.

Installing the package builds them if there is a compiler. Without them, torch computes the same.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from chassis.native_library import find_functions, open_native_library
from checkpoint.families import LanguageConfig

SetName = Literal["amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neon"]
SETS: tuple[SetName, ...] = get_args(SetName)  # the fastest first

_MAX_GROUP = 96  # attention.cpp's kMaxRows
_TILE_INPUTS = 32  # inputs that one instruction of AMX multiplies
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "linear": [*[_POINTER] * 5, *[_LONG] * 3, _INT, _INT],
    "low_bit": [*[_POINTER] * 4, _LONG, _INT, _INT],
    "rms_norm": [*[_POINTER] * 3, _LONG, _LONG, _FLOAT, _INT],
    "rotate_heads": [*[_POINTER] * 4, *[_LONG] * 4, _FLOAT, _INT],
    "swiglu": [_POINTER, _POINTER, _LONG, _LONG, _INT],
    "largest": [*[_POINTER] * 3, _LONG, _LONG, _INT],
    "attention": [*[_POINTER] * 8, *[_LONG] * 6, _INT],
    "layers": [*[_POINTER] * 3, _INT],
}


class NativeLibrary:
    """The compiled kernels of one instruction set.

    Each function is documented at its definition in C++.
    """

    linear: Callable[..., None]
    low_bit: Callable[..., None]
    rms_norm: Callable[..., None]
    rotate_heads: Callable[..., None]
    swiglu: Callable[..., None]
    largest: Callable[..., None]
    attention: Callable[..., None]
    layers: Callable[..., None]

    def __init__(self, opened: ctypes.CDLL, name: SetName) -> None:
        """Take the functions of a set.

        Raises:
            OSError: they cannot run here.
        """
        self.name = name
        for function, (entry, signature) in zip(
            find_functions(opened, name, *_SIGNATURES), _SIGNATURES.items(), strict=True
        ):
            function.argtypes, function.restype = signature, None
            setattr(self, entry, function)

    def fits(self, config: LanguageConfig) -> bool:
        """Return whether the kernels can compute this model."""
        pairs = _TILE_INPUTS if self.name == "amx" else 2  # inputs of a projection come in groups of this size
        inputs = (config.width, config.mlp_width, config.num_heads * config.head_dim)
        return (
            config.head_dim % 32 == 0
            and config.group_size <= _MAX_GROUP
            and all(count % pairs == 0 for count in inputs)
        )


@cache
def open_library(name: SetName) -> NativeLibrary:
    """Return the kernels of an instruction set.

    Raises:
        OSError: they cannot be used here.
    """
    return NativeLibrary(open_native_library("language_service.kernels"), name)


@cache
def library(name: SetName) -> NativeLibrary | None:
    """Return the kernels of an instruction set, or None."""
    try:
        return open_library(name)
    except OSError:
        return None


@cache
def fastest() -> NativeLibrary | None:
    """Return the kernels of the fastest set, for any model.

    None without any.
    """
    return next((found for name in SETS if (found := library(name)) is not None), None)


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's data."""
    return None if tensor is None else tensor.data_ptr()


def takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether compiled kernels exist for a type and device."""
    return dtype == torch.bfloat16 and device.type == "cpu"
