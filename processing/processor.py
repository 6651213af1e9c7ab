"""Turn batches of conversations into model inputs.

B samples, L tokens of the longest sample, I images of the sample with most
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.store import ModelStore
from processing.image_processors import ImageProcessor, Pixels, open_image_processor
from processing.limits import Overflow, PromptLimits, build_within
from processing.prompt import PromptBuilder, TextSegment, open_prompt_builder
from processing.samples import Sample, Turn, naming, read_sample

if TYPE_CHECKING:
    import torch

Side = Literal["left", "right"]
_PADDING_TOKEN = "<|endoftext|>"


class Processor:
    """Turns conversations into model inputs, for one checkpoint.

    It runs the chat template, tokenizer and image steps of the services.
    """

    def __init__(self, prompts: PromptBuilder, *, max_pixels: int | None = None) -> None:
        """Take the text side of a checkpoint.

        Args:
            prompts: of the checkpoint.
            max_pixels: larger images are scaled down to this many pixels. See `from_pretrained`.
        """
        config = prompts.config
        self._prompts = prompts
        self._images: ImageProcessor = open_image_processor(config, max_pixels=max_pixels)
        self._limits = self._images.default_limits(config.language.context_length)
        self._image_id = prompts.image_id
        padding = prompts.tokenizer.token_to_id(_PADDING_TOKEN)
        self._padding_id = config.language.eos_token_ids[0] if padding is None else padding

    @classmethod
    def from_pretrained(
        cls, source: str | Path, models: str | Path = "models", *, max_pixels: int | None = None
    ) -> Self:
        """Return the processor of a checkpoint.

        Args:
            source: a checkpoint folder, or the tag of a checkpoint in the model store.
            models: the model store, a folder of checkpoint folders.
            max_pixels: larger images are scaled down to this many pixels, for families that take images of any size.
                None leaves the checkpoint's own limit, as transformers does. The vision service has a limit of its
                own: `max_resized_pixels`.

        Raises:
            InvalidArgument: reason 'BAD_TAG', the source is neither a folder nor a tag.
            NotFound: reason 'UNKNOWN_TAG', the store has no such checkpoint.
            FailedPrecondition: reason 'BAD_CHECKPOINT', a file is missing or invalid.
            DataLoss: reason 'DIGEST_MISMATCH', a file does not match the manifest.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = ModelStore(Path(models)).folder(str(source))
        return cls(open_prompt_builder(folder.absolute()), max_pixels=max_pixels)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, for example to decode answers."""
        return self._prompts.tokenizer

    @overload
    def __call__(
        self,
        samples: Sequence[Sequence[Turn]],
        *,
        return_tensors: Literal["np"] = "np",
        padding_side: Side = "left",
        max_text_tokens: int | None = None,
        max_length: int | None = None,
        on_overflow: Overflow = "raise",
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    def __call__(
        self,
        samples: Sequence[Sequence[Turn]],
        *,
        return_tensors: Literal["pt"],
        padding_side: Side = "left",
        max_text_tokens: int | None = None,
        max_length: int | None = None,
        on_overflow: Overflow = "raise",
    ) -> "dict[str, torch.Tensor]": ...

    def __call__(
        self,
        samples: Sequence[Sequence[Turn]],
        *,
        return_tensors: Literal["np", "pt"] = "np",
        padding_side: Side = "left",
        max_text_tokens: int | None = None,
        max_length: int | None = None,
        on_overflow: Overflow = "raise",
    ) -> "dict[str, NDArray[Any]] | dict[str, torch.Tensor]":
        """Return the padded model inputs of a batch.

        Every sample may have another number of images and texts. L is the longest sample. A prompt ends where its
        answer begins.

        - `input_ids` [B, L] int64: token ids. An image takes as many image tokens as it has visual tokens.
        - `attention_mask` [B, L] int64: 1 at tokens, 0 at padding.
        - `mm_token_type_ids` [B, L] int64: 1 at image tokens, 0 at text and padding.
        - `image_attention_mask` [B, I] int64: 1 for each image of a sample, 0 beyond them.
        - `pixel_values` float32. Resampler family: [B, I, 3, S, S], zero where `image_attention_mask` is 0. Qwen3-VL:
          [patches of all images, 1536], not padded, as transformers has it.
        - `image_grid_thw` [images, 3] int64, Qwen3-VL only: frames, rows and columns of each image's patches.

        A batch without images has neither `pixel_values` nor `image_grid_thw`, as in transformers. The Qwen3-VL model
        of transformers takes all inputs except `image_attention_mask`, so pop that one.

        Args:
            samples: a conversation each, as `tandem.user(...)` and its neighbours make them. Images are paths, bytes of
                files, Pillow images or uint8 arrays.
            return_tensors: 'np' for NumPy arrays, 'pt' for torch tensors.
            padding_side: 'left' keeps the ends together, so that a model can generate. 'right' suits training.
            max_text_tokens: limit of a sample's tokens that are not visual. The default is 512 in the resampler family
                and the model's context in Qwen3-VL.
            max_length: limit of a sample's tokens. The default is 1,024 in the resampler family and the model's context
                in Qwen3-VL.
            on_overflow: for a longer sample. 'raise' refuses it. 'truncate' cuts its message text from the left, the
                oldest first. Images and the text of the chat template are never cut.

        Raises:
            InvalidArgument: a sample is invalid, and message and field name it. The reason is one of those of
                `read_sample`, or 'IMAGE_TOO_NARROW', 'PROMPT_TOO_LONG', 'IMAGES_TOO_LONG' or 'TEMPLATE_REFUSED'.
                'NO_SAMPLES': the batch is empty.
            FailedPrecondition: reason 'NOT_INSTALLED', torch is missing. 'BAD_CHECKPOINT', the chat template fails.
        """
        if not samples:
            raise InvalidArgument("The batch is empty: give at least one sample.", reason="NO_SAMPLES", field="samples")
        default = self._limits
        limits = PromptLimits(
            default.max_text_tokens if max_text_tokens is None else max_text_tokens,
            default.max_length if max_length is None else max_length,
        )
        rows: list[list[int]] = []
        pixels: list[list[Pixels]] = []
        for index, turns in enumerate(samples):
            sample = read_sample(turns, f"samples[{index}]")
            pixels.append(self._to_pixels(sample))
            rows.append(self._token_ids(sample, limits, on_overflow))
        inputs = self._pad(rows, padding_side)
        inputs["image_attention_mask"] = _mask([len(images) for images in pixels], "right")
        if any(pixels):
            inputs |= self._images.batch(pixels)
        return _to_torch(inputs) if return_tensors == "pt" else inputs

    def _to_pixels(self, sample: Sample) -> list[Pixels]:
        """Return the pixels of a sample's images."""
        pixels = []
        for image, place in zip(sample.images, sample.image_fields, strict=True):
            with naming(place):
                pixels.append(self._images.to_pixels(image))
        return pixels

    def _token_ids(self, sample: Sample, limits: PromptLimits, on_overflow: Overflow) -> list[int]:
        """Return the token ids of a sample.

        An image token stands for each visual token.
        """
        num_visual_tokens = [self._images.num_visual_tokens(*image.size) for image in sample.images]
        with naming(f"{sample.place}.messages"):
            segments = build_within(self._prompts, sample.messages, num_visual_tokens, limits, on_overflow)
        token_ids: list[int] = []
        for segment in segments:
            if isinstance(segment, TextSegment):
                token_ids += segment.token_ids
            else:
                token_ids += [self._image_id] * num_visual_tokens[segment.index]
        return token_ids

    def _pad(self, rows: Sequence[Sequence[int]], side: Side) -> dict[str, NDArray[Any]]:
        """Return the token inputs of a batch."""
        mask_BL = _mask([len(row) for row in rows], side)
        ids_BL = np.full(mask_BL.shape, self._padding_id, np.int64)
        ids_BL[mask_BL == 1] = np.concatenate([np.array(row, np.int64) for row in rows])
        is_image_BL = (ids_BL == self._image_id) & (mask_BL == 1)
        return {"input_ids": ids_BL, "attention_mask": mask_BL, "mm_token_type_ids": is_image_BL.astype(np.int64)}


def _mask(lengths: Sequence[int], padding_side: Side) -> NDArray[np.int64]:
    """Return [rows, longest] with 0 at the padding of each row."""
    longest = max(lengths)
    places = np.arange(longest)
    columns_B1 = np.array(lengths)[:, None]
    taken = places >= longest - columns_B1 if padding_side == "left" else places < columns_B1
    return taken.astype(np.int64)


def _to_torch(inputs: dict[str, NDArray[Any]]) -> "dict[str, torch.Tensor]":
    try:
        import torch
    except ImportError as error:
        raise FailedPrecondition(
            "return_tensors='pt' needs the extra stages: pip install 'tandem-serving[stages]'.", reason="NOT_INSTALLED"
        ) from error
    return {name: torch.from_numpy(array) for name, array in inputs.items()}
