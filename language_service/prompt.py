"""Check the prompt of a request, segment by segment."""

from dataclasses import dataclass

from chassis.errors import InvalidArgument
from chassis.tensors import MAX_CHUNK_BYTES, bad_tensor, check_shape
from checkpoint.identity import DIGEST_BYTES, MAX_SALT_BYTES
from language_service.arriving_image import EMBEDDINGS, ArrivingImage, Image
from language_service.engine import Grid
from language_service.sampling import SamplingOptions
from tandem.v1 import language_pb2, tensor_pb2

MAX_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLimits:
    """Limits of a model for prompts and answers."""

    vocab_size: int
    context_length: int  # tokens, prompt and answer together
    width: int  # elements of the decoder's vectors
    num_levels: int  # vectors of one visual token: its embedding and its DeepStack levels
    num_visual_tokens: int | None  # of one image. None if each image has a grid of its own.
    max_images: int
    vision_digest: bytes  # of the vision half the decoder was trained with
    default_max_tokens: int  # of an answer without a limit of its own


class PromptReader:
    """Checks the segments of one prompt and counts its tokens."""

    def __init__(self, limits: PromptLimits, options: SamplingOptions) -> None:
        self.limits = limits
        self.options = options
        self.num_tokens = 0
        self.num_images = 0
        self._arriving: ArrivingImage | None = None

    def text(self, segment: language_pb2.TextSegment) -> list[int]:
        """Return the token ids of a text segment.

        Raises:
            InvalidArgument: reason 'BAD_STREAM', 'EMPTY_SEGMENT', 'UNKNOWN_TOKEN' or 'PROMPT_TOO_LONG'.
        """
        self._check_no_image_arrives("text")
        token_ids = list(segment.token_ids)
        if not token_ids:
            message = "text.token_ids must have at least one token."
            raise InvalidArgument(message, reason="EMPTY_SEGMENT", field="text.token_ids")
        self._count(len(token_ids), "text.token_ids")
        if max(token_ids) >= self.limits.vocab_size:
            raise InvalidArgument(
                f"text.token_ids has {max(token_ids)}, but must be below the vocabulary size {self.limits.vocab_size}.",
                reason="UNKNOWN_TOKEN",
                field="text.token_ids",
            )
        return token_ids

    def image(self, segment: language_pb2.ImageSegment) -> Image | None:
        """Return a complete image, or None if chunks follow.

        The shape is checked before any data is kept.

        Raises:
            InvalidArgument: 'BAD_STREAM', 'TOO_MANY_IMAGES', 'VISION_MISMATCH', 'BAD_VISUAL_KEY', 'BAD_TENSOR',
                'PROMPT_TOO_LONG'.
        """
        self._check_no_image_arrives("image")
        visual, field = segment.visual_tokens, "image.visual_tokens"
        self.num_images += 1
        if self.num_images > self.limits.max_images:
            raise InvalidArgument(
                f"A prompt may have at most {self.limits.max_images} images.", reason="TOO_MANY_IMAGES", field="image"
            )
        if visual.vision_digest != self.limits.vision_digest:
            raise InvalidArgument(
                "The visual tokens come from another vision half. Encode the image with the one this model needs.",
                reason="VISION_MISMATCH",
                field=f"{field}.vision_digest",
            )
        if len(visual.visual_key) != DIGEST_BYTES:
            raise InvalidArgument(
                f"{field}.visual_key must have {DIGEST_BYTES} bytes, not {len(visual.visual_key)}.",
                reason="BAD_VISUAL_KEY",
                field=f"{field}.visual_key",
            )
        grid = self._grid(visual)
        num_tokens = self.limits.num_visual_tokens if grid is None else grid.rows * grid.columns
        assert num_tokens is not None, "images without a grid have a fixed number of visual tokens"
        shape = (num_tokens, self.limits.num_levels * self.limits.width)
        check_shape(visual.embeddings, shape=shape, field=EMBEDDINGS)
        self._count(num_tokens, "image")
        self._arriving = ArrivingImage(shape, visual.visual_key, grid)
        return self._add(self._arriving, visual.embeddings.data, EMBEDDINGS)

    def image_chunk(self, chunk: language_pb2.ImageChunk) -> Image | None:
        """Return the image that this chunk completes, or None.

        Raises:
            InvalidArgument: reason 'BAD_STREAM' or 'BAD_TENSOR'.
        """
        if self._arriving is None:
            message = "An 'image_chunk' must follow an 'image' whose data is not complete."
            raise InvalidArgument(message, reason="BAD_STREAM", field="image_chunk")
        if not 0 < len(chunk.data) <= MAX_CHUNK_BYTES:
            raise bad_tensor("image_chunk.data", f"must have 1 to {MAX_CHUNK_BYTES} bytes, not {len(chunk.data)}")
        return self._add(self._arriving, chunk.data, "image_chunk.data")

    def end(self) -> int:
        """End the prompt. Return the token limit of the answer.

        Raises:
            InvalidArgument: reason 'EMPTY_PROMPT', 'BAD_TENSOR' if the last image is not complete, or 'BAD_SAMPLING' if
                `min_tokens` exceeds the maximum.
        """
        if self._arriving is not None:
            raise InvalidArgument(
                f"The prompt ended after {self._arriving.progress} of the last image.",
                reason="BAD_TENSOR",
                field=EMBEDDINGS,
            )
        if self.num_tokens == 0:
            raise InvalidArgument("The prompt is empty. Send at least one token.", reason="EMPTY_PROMPT", field="text")
        room = self.limits.context_length - self.num_tokens
        max_tokens = self.options.max_tokens or min(self.limits.default_max_tokens, room)
        if self.options.min_tokens > max_tokens:
            raise InvalidArgument(
                f"sampling.min_tokens must be at most {max_tokens}, the limit of this answer.",
                reason="BAD_SAMPLING",
                field="sampling.min_tokens",
            )
        return max_tokens

    def _grid(self, visual: tensor_pb2.VisualTokens) -> Grid | None:
        """Return the grid of an image, or None without grids."""
        field = "image.visual_tokens.grid"
        if self.limits.num_visual_tokens is not None:
            if visual.HasField("grid"):
                raise bad_tensor(field, "must be absent, because the visual tokens of this model have no grid")
            return None
        grid = Grid(visual.grid.rows, visual.grid.columns)
        if min(grid) < 1:
            raise bad_tensor(field, "must have at least one row and one column")
        return grid

    def _add(self, image: ArrivingImage, data: bytes, field: str) -> Image | None:
        image.add(data, field)
        if not image.is_complete:
            return None
        self._arriving = None
        return image.finish()

    def _check_no_image_arrives(self, field: str) -> None:
        if self._arriving is not None:
            raise InvalidArgument(
                f"Send the rest of the image as 'image_chunk' first: {self._arriving.progress} have arrived.",
                reason="BAD_STREAM",
                field=field,
            )

    def _count(self, num_tokens: int, field: str) -> None:
        """Count tokens of the prompt. Leave room for the answer.

        The answer needs `max_tokens`, or at least one token.
        """
        self.num_tokens += num_tokens
        if self.num_tokens + max(self.options.max_tokens, 1) > self.limits.context_length:
            answer = f" and an answer of {self.options.max_tokens}" if self.options.max_tokens else ""
            raise InvalidArgument(
                f"A prompt of {self.num_tokens} tokens or more{answer} exceeds the context length of "
                f"{self.limits.context_length}.",
                reason="PROMPT_TOO_LONG",
                field=field,
            )


def check_start(start: language_pb2.GenerateStart) -> None:
    """Check salt and priority of a request.

    Raises:
        InvalidArgument: reason 'BAD_SALT' or 'BAD_PRIORITY'.
    """
    if len(start.cache_salt) > MAX_SALT_BYTES:
        raise InvalidArgument(
            f"start.cache_salt must have at most {MAX_SALT_BYTES} bytes.", reason="BAD_SALT", field="start.cache_salt"
        )
    if abs(start.priority) > MAX_PRIORITY:
        raise InvalidArgument(
            f"start.priority must be -{MAX_PRIORITY} to {MAX_PRIORITY}.", reason="BAD_PRIORITY", field="start.priority"
        )
