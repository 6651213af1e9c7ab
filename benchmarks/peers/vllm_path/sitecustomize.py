"""Imported first in each of vLLM's processes, through their PYTHONPATH.

No torchvision fits torch's build for processors. Its compiled part does not load there, and its Python part does not
import unless these operators are declared. Nothing calls them.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # kept, since its declarations end with it
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
