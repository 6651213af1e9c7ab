"""Compute the decoder's arithmetic, with kernels from `choice`."""

from language_service.kernels import huge_pages
from language_service.kernels.choice import KernelName, choose_attention, choose_kernels
from language_service.kernels.decode_attention import AttendDecoded, ChunkAttention, DecodeAttention, GatheredAttention
from language_service.kernels.decode_choice import AttentionName, choose_chunk_attention, choose_decode_attention
from language_service.kernels.interface import Head, Kernels, Layer, Projection
from language_service.kernels.native import largest
from language_service.kernels.native_attention import NativeAttention
from language_service.kernels.paged_attend import PagedAttend
from language_service.kernels.plain import PlainHead

__all__ = [
    "AttendDecoded",
    "AttentionName",
    "ChunkAttention",
    "DecodeAttention",
    "GatheredAttention",
    "Head",
    "KernelName",
    "Kernels",
    "Layer",
    "NativeAttention",
    "PagedAttend",
    "PlainHead",
    "Projection",
    "choose_attention",
    "choose_chunk_attention",
    "choose_decode_attention",
    "choose_kernels",
    "huge_pages",
    "largest",
]
