"""Draw the README's figure: sample images, questions and answers.

    python -m demo.samples --font FONT

The sample images come from held-out seeds. The script also writes them to `demo/images/`, for you to ask about.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from demo.drawing import IMAGE_SIZE, draw
from demo.scenes import HELD_OUT_SEEDS, make_scene
from tandem.client import Client
from tandem.stack import Stack, StackConfig

IMAGES = Path(__file__).parent / "images"
OUTPUT = Path(__file__).parents[1] / "docs" / "demo-answers.png"

SCALE = 2  # pixels per layout unit, for high-resolution screens
MARGIN = 16 * SCALE
TEXT_WIDTH = 470 * SCALE
FONT_SIZE = 15 * SCALE
LINE_HEIGHT = 22 * SCALE
INK, ANSWER_INK = (70, 70, 76), (0, 92, 60)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and the questions about it."""

    name: str
    seed: int
    questions: tuple[str, ...]


# The model was trained on the word "picture", never on "image".
SAMPLES = (
    Sample(
        "bag-and-bottle",
        HELD_OUT_SEEDS[-180],
        ("Describe the picture.", "Is the bag made of leather?", "这个包是真皮的吗？", "右边的商品是什么颜色的？"),
    ),
    Sample(
        "umbrellas-and-watch",
        HELD_OUT_SEEDS[-172],
        ("How many umbrellas are there?", "Is the watch red?", "手表在哪里？", "描述一下这张图片。"),
    ),
)


def write_images(folder: Path) -> None:
    """Write the sample images as PNG files."""
    folder.mkdir(exist_ok=True)
    for sample in SAMPLES:
        draw(make_scene(sample.seed)).save(folder / f"{sample.name}.png", optimize=True)


def ask_all(client: Client, release: str, folder: Path) -> list[list[str]]:
    """Ask every question of every sample and return the answers."""
    return [
        [
            client.ask(question, images=[folder / f"{sample.name}.png"], release=release, temperature=0.0).text
            for question in sample.questions
        ]
        for sample in SAMPLES
    ]


def draw_answers(answers: Sequence[Sequence[str]], folder: Path, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw each sample image next to its questions and answers."""
    side = IMAGE_SIZE * SCALE
    sheet = Image.new("RGB", (side + TEXT_WIDTH + 3 * MARGIN, (side + MARGIN) * len(SAMPLES) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (sample, said) in enumerate(zip(SAMPLES, answers, strict=True)):
        top = MARGIN + row * (side + MARGIN)
        with Image.open(folder / f"{sample.name}.png") as image:
            sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (MARGIN, top))
        for question, answer in zip(sample.questions, said, strict=True):
            for text, ink in ((question, INK), (answer, ANSWER_INK)):
                for line in _wrap(text, font):
                    pen.text((side + 2 * MARGIN, top), line, fill=ink, font=font)
                    top += LINE_HEIGHT
            top += LINE_HEIGHT // 2
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text into lines that fit.

    English breaks at blanks, Chinese between any two characters.
    """
    pieces = text.split(" ") if text.isascii() else list(text)
    glue = " " if text.isascii() else ""
    lines = [pieces[0]]
    for piece in pieces[1:]:
        longer = lines[-1] + glue + piece
        if font.getlength(longer) <= TEXT_WIDTH:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m demo.samples", description="Draw the README's figure.")
    parser.add_argument("--font", type=Path, required=True, help="a font with Chinese characters (.ttf, .ttc or .otf)")
    parser.add_argument("--release", default="tandem-demo-v1.1.0", help="tag of the release that answers")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the model store")
    arguments = parser.parse_args()
    write_images(IMAGES)
    stack = StackConfig(models=arguments.models, release=arguments.release)
    with Stack(stack) as running, Client(running.address) as client:
        answers = ask_all(client, arguments.release, IMAGES)
    draw_answers(answers, IMAGES, ImageFont.truetype(arguments.font, FONT_SIZE)).save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
