"""The vision halves in plain torch, one family a module."""

from vision_service.model.choice import build_vision_model
from vision_service.model.encoder import VisionHalf
from vision_service.model.graph import OUTPUT, GraphBatch, Inputs, Run, build_graph, dynamic_dimensions, graph_batches
from vision_service.model.linear import LinearAdd, LinearGelu
from vision_service.model.positions import sincos_2d
from vision_service.model.qwen3_vl import Attend, Attention
from vision_service.model.vit import PlainAttend, SelfAttention

__all__ = [
    "OUTPUT",
    "Attend",
    "Attention",
    "GraphBatch",
    "Inputs",
    "LinearAdd",
    "LinearGelu",
    "PlainAttend",
    "Run",
    "SelfAttention",
    "VisionHalf",
    "build_graph",
    "build_vision_model",
    "dynamic_dimensions",
    "graph_batches",
    "sincos_2d",
]
