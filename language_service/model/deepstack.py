"""DeepStack: add levels of visual tokens after the first layers.

A visual token has an embedding and one vector for each level. The embedding goes into the first layer. Level l is added
to the output of layer l, at the image's tokens only. Source: DeepStack (Meng et al., 2024), as in Qwen3-VL.
"""

from dataclasses import dataclass

from torch import Tensor

# T tokens of the batch, N visual tokens, L vectors of each (embedding and levels), D model dim


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Visual tokens of one image, as neighbouring rows."""

    first: int  # row of the first in the batch
    tokens_NLD: Tensor

    @property
    def end(self) -> int:
        """Row after the last."""
        return self.first + len(self.tokens_NLD)

    def add_level(self, level: int, hidden_TD: Tensor) -> None:
        """Add one level to the image's rows, in place."""
        hidden_TD[self.first : self.end] += self.tokens_NLD[:, 1 + level]
