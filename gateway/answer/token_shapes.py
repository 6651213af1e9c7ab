"""Work out the visual tokens of each image before it is encoded."""

import asyncio
from collections.abc import Sequence

from chassis.errors import InvalidArgument
from gateway.images import RequestImage, TokenShape
from gateway.stages import Route
from processing import ImageProcessor, open_image_processor, upright_size


async def token_shapes(images: Sequence[RequestImage], route: Route) -> list[TokenShape]:
    """Return number and grid of each image's visual tokens.

    Raises:
        InvalidArgument: an image's size cannot be read, or the model does not take it. `field` names the image.
    """
    if route.vision is None:
        return []
    config = route.release.config
    if config.num_visual_tokens is not None:
        return [TokenShape(config.num_visual_tokens)] * len(images)
    processor = open_image_processor(config, max_pixels=route.vision.info.vision.max_resized_pixels or None)
    # A header can be slow to read, so not on the event loop.
    return await asyncio.to_thread(lambda: [_shape(image, processor) for image in images])


def _shape(image: RequestImage, processor: ImageProcessor) -> TokenShape:
    try:
        width, height = upright_size(image.data)
        return TokenShape(processor.num_visual_tokens(width, height), processor.grid(width, height))
    except InvalidArgument as error:
        raise InvalidArgument(error.message, reason=error.reason, field=image.field) from error
