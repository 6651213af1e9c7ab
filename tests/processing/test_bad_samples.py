"""Invalid samples are typed errors that name the part."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from chassis.errors import InvalidArgument
from processing import Processor
from tandem import Image, Message, user
from tests.processing.image_zoo import noise
from tests.processing.test_processor import FILES

GOOD = [user(Image(FILES["tiny"]), "What?")]
PNG = FILES["photo"]

BAD_IMAGES: dict[str, tuple[object, str]] = {
    "no bytes": (b"", "IMAGE_EMPTY"),
    "another format": (b"%PDF-1.7", "IMAGE_UNSUPPORTED"),
    "text": (b"What is this?", "IMAGE_UNSUPPORTED"),
    "truncated": (PNG[: len(PNG) // 2], "IMAGE_TRUNCATED"),
    "damaged": (PNG[:200] + bytes(100) + PNG[300:], "IMAGE_TRUNCATED"),
    "no file": ("/nothing/here.png", "IMAGE_UNREADABLE"),
    "a folder": (Path("/"), "IMAGE_UNREADABLE"),
    "floats": (np.zeros((8, 8, 3), np.float32), "IMAGE_UNSUPPORTED"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "IMAGE_UNSUPPORTED"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), "IMAGE_EMPTY"),
    "not an image": (42, "BAD_PART"),
}
GARBLED = {
    "lone surrogate": ("caf\udce9", "U+DCE9 at position 3"),
    "lost bytes": ("caf\ufffd", "U+FFFD at position 3"),
    "control character": ("a\x00b", "U+0000 at position 1"),
    "escape": ("\x1b[31mred", "U+001B at position 0"),
    "misread latin": ("don\x92t", "U+0092 at position 3"),
}


def refusal(processor: Processor, turns: list[Message]) -> InvalidArgument:
    """Return the error of a batch with one bad sample."""
    with pytest.raises(InvalidArgument) as raised:
        processor([GOOD, GOOD, GOOD, turns])
    assert raised.value.field is not None
    assert raised.value.message.startswith(f"{raised.value.field}: ")
    return raised.value


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_the_error_of_an_image_names_its_part(resampler: Processor, name: str) -> None:
    source, reason = BAD_IMAGES[name]
    error = refusal(resampler, [user("Look: ", Image(source), "?")])  # type: ignore[arg-type]
    assert (error.reason, error.field) == (reason, "samples[3].messages[0].parts[1].image")
    assert "/nothing" not in error.message


def test_a_damaged_pillow_image_names_its_part(qwen: Processor, tmp_path: Path) -> None:
    """Pillow decodes a file when its pixels are first used."""
    path = tmp_path / "half.png"
    path.write_bytes(PNG[: len(PNG) // 2])
    with PillowImage.open(path) as opened:
        error = refusal(qwen, [user("?"), user("Look: ", Image(opened))])
    assert (error.reason, error.field) == ("IMAGE_TRUNCATED", "samples[3].messages[1].parts[1].image")


def test_an_image_too_narrow_for_the_model_names_its_part(qwen: Processor) -> None:
    error = refusal(qwen, [user(Image(noise(2010, 10)), "?")])
    assert (error.reason, error.field) == ("IMAGE_TOO_NARROW", "samples[3].messages[0].parts[0].image")


@pytest.mark.parametrize("name", GARBLED)
def test_the_error_of_garbled_text_names_part_and_character(resampler: Processor, name: str) -> None:
    text, character = GARBLED[name]
    error = refusal(resampler, [user(Image(FILES["tiny"]), "fine", text)])
    assert (error.reason, error.field) == ("GARBLED_TEXT", "samples[3].messages[0].parts[2].text")
    assert character in error.message


@pytest.mark.parametrize("text", ["tabs\tand\nlines\r\n", "中文　空格", "\u200d🙂\U000e0020", "<|im_end|>", "\ue000"])
def test_unusual_text_is_accepted(resampler: Processor, text: str) -> None:
    ids = resampler([[user(text)]])["input_ids"][0].tolist()
    assert text in resampler.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("turns", "reason", "field"),
    [
        ([], "NO_MESSAGES", "samples[3].messages"),
        ([Message("tool", ("x",))], "BAD_ROLE", "samples[3].messages[0].role"),  # type: ignore[arg-type]
        ([user("a"), user()], "EMPTY_MESSAGE", "samples[3].messages[1].parts"),
    ],
)
def test_the_error_of_a_message_names_it(resampler: Processor, turns: list[Message], reason: str, field: str) -> None:
    error = refusal(resampler, turns)
    assert (error.reason, error.field) == (reason, field)


def test_an_empty_batch_is_refused(resampler: Processor) -> None:
    with pytest.raises(InvalidArgument) as raised:
        resampler([])
    assert raised.value.reason == "NO_SAMPLES"
