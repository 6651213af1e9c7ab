"""The decoder's arithmetic, by instruction set."""

from language_service.kernels import huge_pages
from language_service.kernels.interface import Head, Kernels, Layer, Projection
from language_service.kernels.library import fits
from language_service.kernels.native import NativeKernels, TileKernels, largest
from language_service.kernels.native_attention import NativeAttention
from language_service.kernels.plain import OneDnnKernels, PlainKernels

__all__ = [
    "Head",
    "Kernels",
    "Layer",
    "NativeAttention",
    "NativeKernels",
    "OneDnnKernels",
    "PlainKernels",
    "Projection",
    "TileKernels",
    "fits",
    "huge_pages",
    "largest",
]
