"""Batches of conversations as the services' own tensors."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from chassis.errors import InvalidArgument, NotFound
from gateway.answer.checks import Limits, check_conversation
from processing import TextSegment, open_image_processor, open_prompt_builder
from processing.processor import Side
from tandem import Image, Message, Processor, assistant, system, user
from tandem.client.request import messages
from tests.processing.colour_profiles import display_p3
from tests.processing.image_zoo import IMAGES, noise
from vision_service.image_reader import ImageLimits, read_image

LIMITS = Limits(max_images=8, max_text_characters=10_000, max_stop_strings=0)
PADDING_ID, IMAGE_ID = 0, 4  # of the byte tokenizer


def file_of(image: PillowImage.Image, kind: str = "PNG", orientation: int = 1, profile: bytes | None = None) -> bytes:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, icc_profile=profile)
    return file.getvalue()


FILES = {name: file_of(image) for name, image in IMAGES.items()}
FILES["turned photo"] = file_of(noise(300, 200), "JPEG", orientation=6)
FILES["photo in Display P3"] = file_of(noise(280, 210), "JPEG", profile=display_p3())

# No, one and four images, with another number of texts each.
SAMPLES: list[list[Message]] = [
    [system("Be brief."), user("你好，今天天气怎么样？")],
    [user(Image(FILES["photo"]), "What is this?")],
    [
        user("Compare ", Image(FILES["turned photo"]), " with ", Image(FILES["photo in Display P3"])),
        assistant("Both are smooth."),
        user(Image(FILES["very wide"]), Image(FILES["transparent"]), "And these?"),
    ],
]
NUM_IMAGES = [0, 1, 4]


def served_ids(folder: Path, turns: Sequence[Message]) -> list[int]:
    """Return the token ids that the gateway sends.

    An image token stands for each visual token.
    """
    prompts = open_prompt_builder(folder)
    images = open_image_processor(prompts.config)
    conversation = check_conversation(messages(turns), LIMITS)
    sizes = [read_image(one.image.data, ImageLimits()).size for one in conversation.images]
    ids: list[int] = []
    for segment in prompts.build_segments(conversation.messages):
        if isinstance(segment, TextSegment):
            ids += segment.token_ids
        else:
            ids += [IMAGE_ID] * images.num_visual_tokens(*sizes[segment.index])
    return ids


def served_pixels(folder: Path, turns: Sequence[Message]) -> list[np.ndarray]:
    """Return the pixels that the vision service computes."""
    images = open_image_processor(open_prompt_builder(folder).config)
    conversation = check_conversation(messages(turns), LIMITS)
    return [images.to_pixels(read_image(one.image.data, ImageLimits())) for one in conversation.images]


@pytest.mark.parametrize("family", ["resampler", "qwen"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_token_ids_are_those_of_the_gateway(request: pytest.FixtureRequest, family: str, side: Side) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    inputs = request.getfixturevalue(family)(SAMPLES, padding_side=side, max_length=20_000)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for row, mask_row, turns in zip(ids, mask, SAMPLES, strict=True):
        expected = served_ids(folder, turns)
        first = len(row) - len(expected) if side == "left" else 0
        assert mask_row.tolist() == [first <= at < first + len(expected) for at in range(len(row))]
        assert row[mask_row == 1].tolist() == expected
        assert set(row[mask_row == 0].tolist()) <= {PADDING_ID}
    assert max(map(sum, mask.tolist())) == ids.shape[1]
    np.testing.assert_array_equal(inputs["mm_token_type_ids"], ids == IMAGE_ID)
    assert inputs["image_attention_mask"].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_squares_are_those_of_the_vision_service(resampler: Processor, resampler_folder: Path) -> None:
    pixels = resampler(SAMPLES)["pixel_values"]
    assert pixels.shape == (3, 4, 3, 224, 224)
    assert pixels.dtype == np.float32
    for row, turns, count in zip(pixels, SAMPLES, NUM_IMAGES, strict=True):
        expected = served_pixels(resampler_folder, turns)
        assert len(expected) == count
        for image, reference in zip(row, expected, strict=False):
            np.testing.assert_array_equal(image, reference)
        assert not row[count:].any()


def test_patches_are_those_of_the_vision_service(qwen: Processor, qwen_folder: Path) -> None:
    """Plain indexing cuts patches out of the service's pixels."""
    inputs = qwen(SAMPLES)
    patches, at = inputs["pixel_values"].reshape(-1, 3, 2, 16, 16), 0
    expected = [pixels for turns in SAMPLES for pixels in served_pixels(qwen_folder, turns)]
    for pixels, grid in zip(expected, inputs["image_grid_thw"].tolist(), strict=True):
        frames, rows, columns = grid
        assert (frames, rows * 16, columns * 16) == (1, *pixels.shape[1:])
        for cell_row in range(0, rows, 2):
            for cell_column in range(0, columns, 2):
                for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    top, left = 16 * (cell_row + row), 16 * (cell_column + column)
                    for frame in range(2):
                        np.testing.assert_array_equal(
                            patches[at, :, frame], pixels[:, top : top + 16, left : left + 16]
                        )
                    at += 1
    assert at == len(patches)


def test_every_form_of_an_image_gives_the_same_pixels(resampler: Processor, tmp_path: Path) -> None:
    image = IMAGES["photo"]
    path = tmp_path / "photo.png"
    path.write_bytes(FILES["photo"])
    forms = [Image(path), Image(str(path)), Image(FILES["photo"]), Image(image), Image(np.asarray(image))]
    inputs = resampler([[user(form, "?")] for form in forms])
    for pixels in inputs["pixel_values"][1:]:
        np.testing.assert_array_equal(pixels, inputs["pixel_values"][0])


def test_a_pillow_image_of_a_file_is_turned_upright(resampler: Processor) -> None:
    opened = PillowImage.open(io.BytesIO(FILES["turned photo"]))
    inputs = resampler([[user(Image(opened), "?")], [user(Image(FILES["turned photo"]), "?")]])
    np.testing.assert_array_equal(*inputs["pixel_values"])


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3), (40, 60, 4)])
def test_arrays_are_grey_rgb_or_rgba(resampler: Processor, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = PillowImage.fromarray(array)
    inputs = resampler([[user(Image(array), "?")], [user(Image(image), "?")]])
    np.testing.assert_array_equal(*inputs["pixel_values"])


def test_parts_may_be_images_themselves(resampler: Processor, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(FILES["photo"])
    bare = Message("user", (path, FILES["photo"], IMAGES["photo"], "?"))  # type: ignore[arg-type]
    wrapped = user(Image(path), Image(FILES["photo"]), Image(IMAGES["photo"]), "?")
    inputs = resampler([[bare], [wrapped]])
    np.testing.assert_array_equal(*inputs["pixel_values"])
    np.testing.assert_array_equal(*inputs["input_ids"])


def test_torch_tensors_equal_the_arrays(qwen: Processor) -> None:
    arrays, tensors = qwen(SAMPLES), qwen(SAMPLES, return_tensors="pt")
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])
        assert tensor.dtype == (torch.float32 if name == "pixel_values" else torch.int64)


@pytest.mark.parametrize("family", ["resampler", "qwen"])
def test_a_batch_without_images_has_no_pixels(request: pytest.FixtureRequest, family: str) -> None:
    inputs = request.getfixturevalue(family)([SAMPLES[0], [user("Hi")]])
    assert inputs.keys() == {"input_ids", "attention_mask", "mm_token_type_ids", "image_attention_mask"}
    assert inputs["image_attention_mask"].shape == (2, 0)


def test_larger_images_are_scaled_down_on_request(qwen_folder: Path) -> None:
    small = Processor.from_pretrained(qwen_folder, max_pixels=2**16)
    turns = [user(Image(FILES["large"]), "?")]
    assert int(small([turns])["image_grid_thw"].prod()) * 256 <= 2**16
    assert int(Processor.from_pretrained(qwen_folder)([turns])["image_grid_thw"].prod()) * 256 > 2**19


def test_a_tag_is_found_in_the_model_store(store: Path, resampler: Processor, resampler_folder: Path) -> None:
    by_tag = Processor.from_pretrained(resampler_folder.name, store)
    np.testing.assert_array_equal(by_tag(SAMPLES)["input_ids"], resampler(SAMPLES)["input_ids"])
    with pytest.raises(NotFound) as raised:
        Processor.from_pretrained("nothing-v1.0.0", models=store)
    assert raised.value.reason == "UNKNOWN_TAG"
    with pytest.raises(InvalidArgument) as refused:
        Processor.from_pretrained("nothing", models=store)
    assert refused.value.reason == "BAD_TAG"


def test_the_tokenizer_decodes_what_was_encoded(qwen: Processor) -> None:
    ids = qwen([SAMPLES[0]])["input_ids"][0].tolist()
    assert "你好，今天天气怎么样？" in qwen.tokenizer.decode(ids)
