"""Read prompts for calibration, and encode their images."""

from pathlib import Path

import numpy as np
import torch

from checkpoint.probes import Probe, read_probes_file
from language_service.calibration import CalibrationImage, Grid, Prompt
from processing import (
    ChatMessage,
    ImagePart,
    TextPart,
    TextSegment,
    load_upright,
    open_image_file,
    open_image_processor,
    open_prompt_builder,
)
from vision_service.backends import BackendOptions, open_backend

_MAX_PIXELS = 2**20  # of an image, as the vision service has it


def read_prompts(folder: Path, file: Path, max_prompts: int) -> list[Prompt]:
    """Return prompts as a release's decoder gets them.

    Args:
        folder: of the checkpoint.
        file: the prompts, in the form of probes. Their judges are not used.
        max_prompts: prompts to read. They are taken from the whole file at equal distances.

    Raises:
        InvalidArgument, FailedPrecondition: a prompt or an image cannot be read.
    """
    probes = read_probes_file(file)
    step = max(1, len(probes.probes) // max_prompts)
    chosen = probes.probes[::step][:max_prompts]
    builder = open_prompt_builder(folder)
    images = _encode(folder, {digest: probes.images[digest] for probe in chosen for digest in _digests(probe)})
    prompts: list[Prompt] = []
    for probe in chosen:
        digests = _digests(probe)
        segments = builder.build_segments(_messages(probe))
        prompts.append(
            [part.token_ids if isinstance(part, TextSegment) else images[digests[part.index]] for part in segments]
        )
    return prompts


def _encode(folder: Path, files: dict[bytes, bytes]) -> dict[bytes, CalibrationImage]:
    """Return the visual tokens of image files, by digest."""
    if not files:
        return {}
    half = open_backend("torch", folder, BackendOptions(max_resized_pixels=_MAX_PIXELS))
    processor = open_image_processor(half.config, max_pixels=_MAX_PIXELS)
    images = {}
    for digest, data in files.items():
        image = load_upright(open_image_file(data))
        (bits_NX,) = half.backend.encode([processor.to_pixels(image)])
        tokens_NX = torch.from_numpy(bits_NX.view(np.int16)).view(torch.bfloat16)
        grid = processor.grid(*image.size)
        images[digest] = CalibrationImage(tokens_NX, grid and Grid(*grid))
    return images


def _digests(probe: Probe) -> list[bytes]:
    return [part for message in probe.messages for part in message.parts if isinstance(part, bytes)]


def _messages(probe: Probe) -> list[ChatMessage]:
    return [{"role": message.role, "content": [_part(part) for part in message.parts]} for message in probe.messages]


def _part(part: str | bytes) -> TextPart | ImagePart:
    return {"type": "image"} if isinstance(part, bytes) else {"type": "text", "text": part}
