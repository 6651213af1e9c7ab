"""Check the prompt of a request, segment by segment."""

from dataclasses import dataclass

import torch
from torch import Tensor

from chassis.errors import InvalidArgument
from chassis.tensors import check_tensor
from checkpoint.identity import DIGEST_BYTES, MAX_SALT_BYTES
from language_service.sampling import SamplingOptions
from tandem.v1 import language_pb2, tensor_pb2

MAX_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLimits:
    """Limits of a model for prompts and answers."""

    vocab_size: int
    context_length: int  # tokens, prompt and answer together
    width: int  # elements per visual token
    num_visual_tokens: int  # of one image
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

    def text(self, segment: language_pb2.TextSegment) -> list[int]:
        """Return the token ids of a text segment.

        Raises:
            InvalidArgument: reason 'EMPTY_SEGMENT', 'UNKNOWN_TOKEN' or 'PROMPT_TOO_LONG'.
        """
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

    def image(self, segment: language_pb2.ImageSegment) -> tuple[Tensor, bytes]:
        """Return visual tokens [N, D] in bfloat16, and their key.

        Raises:
            InvalidArgument: 'TOO_MANY_IMAGES', 'VISION_MISMATCH', 'BAD_VISUAL_KEY', 'BAD_TENSOR', 'PROMPT_TOO_LONG'.
        """
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
        shape = (self.limits.num_visual_tokens, self.limits.width)
        check_tensor(visual.embeddings, shape=shape, field=f"{field}.embeddings")
        self._count(self.limits.num_visual_tokens, "image")
        return _to_torch(visual.embeddings), visual.visual_key

    def end(self) -> int:
        """End the prompt. Return the token limit of the answer.

        Raises:
            InvalidArgument: reason 'EMPTY_PROMPT', or 'BAD_SAMPLING' if `min_tokens` exceeds the maximum.
        """
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


def _to_torch(tensor: tensor_pb2.Tensor) -> Tensor:
    # A copy, because torch needs writable memory.
    return torch.frombuffer(bytearray(tensor.data), dtype=torch.bfloat16).view(*tensor.shape)
