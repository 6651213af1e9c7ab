"""A backend that runs a graph exported to another library.

B images of one run, N visual tokens of an image, D decoder width
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from chassis.errors import FailedPrecondition, Internal
from checkpoint.exports import Export
from checkpoint.families import ModelConfig, Qwen3VLConfig, layout
from vision_service.backends.interface import BackendOptions
from vision_service.model import Run, graph_batches


class GraphBackend:
    """Runs a vision half as a graph.

    Images with equally many patches share a run, so attention stays within an image and nothing is padded.
    """

    def __init__(self, *, name: str, config: ModelConfig, export: Export, options: BackendOptions, run: Run) -> None:
        """Check that the export takes the largest batch.

        Args:
            name: kind of backend.
            config: of the model.
            export: record of the export, verified.
            options: the device and the largest batch.
            run: runs the graph.

        Raises:
            FailedPrecondition: BAD_EXPORT, the export's profile is too small for the largest batch.
        """
        _check_profile(export, config, options)
        self.name = name
        self.device = str(options.device)
        self.precision = export.precision
        self.export_digest = export.digest
        self.num_parameters = sum(spec.num_parameters for spec in layout(config) if spec.half == "vision")
        self.num_weight_bytes = self.num_parameters * options.dtype.itemsize
        self._config = config
        self._run = run

    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return each image's visual tokens, [N, levels x D], as bit patterns.

        Raises:
            Internal: BAD_OUTPUT, the result has a wrong shape.
        """
        tokens: dict[int, NDArray[np.uint16]] = {}
        for batch in graph_batches(self._config, images):
            shape = (len(batch.images), batch.num_tokens, self._config.token_width)
            found_BND = self._run(batch.inputs, shape)
            if tuple(found_BND.shape) != shape:
                raise Internal(
                    f"The backend {self.name} returned visual tokens of shape {tuple(found_BND.shape)}, not {shape}.",
                    reason="BAD_OUTPUT",
                )
            bits_BND = found_BND.to(torch.bfloat16).cpu().view(torch.uint16)
            # Copy each image's tokens. A view would keep the memory of the whole batch.
            tokens.update(zip(batch.images, (bits.clone().numpy() for bits in bits_BND), strict=True))
        return [tokens[place] for place in range(len(images))]


def _check_profile(export: Export, config: ModelConfig, options: BackendOptions) -> None:
    limits = [("images", export.profile.batch.max, options.max_batch_size)]
    if isinstance(config, Qwen3VLConfig) and export.profile.patches is not None:
        patches = min(options.max_resized_pixels, config.vision.max_pixels) // config.vision.patch_size**2
        limits.append(("patches of an image", export.profile.patches.max, patches))
    for unit, largest, needed in limits:
        if largest is not None and largest < needed:
            raise FailedPrecondition(
                f"The export {export.name} takes at most {largest} {unit}, and batches may have {needed}: lower the "
                "limits of the service, or export again with larger ones.",
                reason="BAD_EXPORT",
            )
