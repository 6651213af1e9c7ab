"""Imported first in each Python of vLLM's environment.

No torchvision fits torch's build for processors. Its compiled part does not load there, and its Python part does not
import unless these operators are declared. Nothing calls them.
"""

import sys


class _DeclareOperators:
    """Waits for the import of torchvision.

    So other programs do not load torch.
    """

    library: object = None  # kept, since its declarations end with it

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Declare the operators before torchvision is looked for."""
        if name != "torchvision" or self.library is not None:
            return
        import torch

        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        self.library = library


sys.meta_path.insert(0, _DeclareOperators())  # it never finds a module
