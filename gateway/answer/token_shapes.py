"""Work out the visual tokens of each image before it is encoded."""

import asyncio
from collections.abc import Sequence

from chassis.errors import InvalidArgument
from gateway.images import RequestImage, TokenShape
from gateway.stages import Release, Route
from processing import ImageProcessor, open_image_processor, upright_size
from tandem.v1 import model_pb2


async def token_shapes(images: Sequence[RequestImage], route: Route) -> list[TokenShape]:
    """Return number and grid of each image's visual tokens.

    Raises:
        InvalidArgument: an image's size cannot be read, or the model does not take it. `field` names the image.
    """
    if route.vision is None:
        return []
    return await shapes_for(images, route.release, route.vision.info.vision)


async def shapes_for(
    images: Sequence[RequestImage], release: Release, vision: model_pb2.VisionModelInfo
) -> list[TokenShape]:
    """Return number and grid of each image's visual tokens.

    Raises as `token_shapes`.
    """
    fixed = release.config.num_visual_tokens
    if fixed is not None:
        return [TokenShape(fixed)] * len(images)
    processor = open_image_processor(release.config, max_pixels=vision.max_resized_pixels or None)
    # A header can be slow to read, so not on the event loop.
    return [await asyncio.to_thread(_shape, image, processor) for image in images]


def _shape(image: RequestImage, processor: ImageProcessor) -> TokenShape:
    try:
        width, height = upright_size(image.data)
        return TokenShape(processor.num_visual_tokens(width, height), processor.grid(width, height))
    except InvalidArgument as error:
        raise InvalidArgument(error.message, reason=error.reason, field=image.field) from error
