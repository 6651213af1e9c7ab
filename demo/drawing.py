"""Draw a scene as an image of 224x224 pixels.

This is the model's input size, so serving does not resize the drawing.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from demo.scenes import POSITIONS, Colour, Item, Kind, Material, Scene

IMAGE_SIZE = 224  # pixels per side
TILE_SIZE = 160  # pixels per side of a texture: room for the largest item at the largest offset
INK = (60, 60, 64)  # RGB
SMOOTHING = 3  # silhouettes are drawn this many times larger, then scaled down

RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (205, 25, 30),
    "orange": (250, 135, 10),
    "yellow": (250, 228, 45),
    "green": (25, 150, 50),
    "blue": (25, 75, 215),
    "purple": (135, 40, 170),
    "black": (22, 22, 24),
    "white": (250, 250, 250),
}
LIGHT_COLOURS: frozenset[Colour] = frozenset({"orange", "yellow", "white"})  # their texture is darker, not lighter

Polygon = list[tuple[float, float]]
SILHOUETTES: dict[Kind, Polygon] = {  # in a unit square with y downwards. `silhouette` adds curves to some.
    "bag": [(0.1, 0.38), (0.9, 0.38), (1, 0.96), (0, 0.96)],
    "watch": [(0.36, 0), (0.64, 0), (0.66, 1), (0.34, 1)],
    "shirt": [
        (0.27, 0),
        (0.73, 0),
        (1, 0.3),
        (0.85, 0.5),
        (0.74, 0.38),
        (0.74, 1),
        (0.26, 1),
        (0.26, 0.38),
        (0.15, 0.5),
        (0, 0.3),
    ],
    "shoe": [(0.02, 0.2), (0.38, 0.2), (0.5, 0.48), (0.9, 0.56), (1, 0.7), (1, 0.92), (0.02, 0.92)],
    "cup": [(0.06, 0.12), (0.7, 0.12), (0.64, 0.94), (0.12, 0.94)],
    "hat": [(0.2, 0.12), (0.8, 0.12), (0.84, 0.62), (1, 0.66), (1, 0.86), (0, 0.86), (0, 0.66), (0.16, 0.62)],
    "umbrella": [(0.46, 0.4), (0.55, 0.4), (0.55, 0.96), (0.46, 0.96)],
    "bottle": [(0.36, 0), (0.64, 0), (0.64, 0.26), (0.82, 0.4), (0.82, 1), (0.18, 1), (0.18, 0.4), (0.36, 0.26)],
}


def item_height(size: int) -> int:
    """Return an item's height from its width, in pixels."""
    return round(1.25 * size)


@cache
def silhouette(kind: Kind, size: int, mirrored: bool) -> Image.Image:
    """Return an item's coverage of each pixel, 0 to 255.

    The mask is `size` pixels wide and `item_height(size)` pixels high.
    """
    width, height = size * SMOOTHING, item_height(size) * SMOOTHING
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    pen.polygon([(x * width, y * height) for x, y in SILHOUETTES[kind]], fill=255)
    match kind:
        case "bag":
            pen.arc((0.24 * width, 0.03 * height, 0.76 * width, 0.75 * height), 180, 360, fill=255, width=width // 12)
        case "cup":
            pen.arc((0.5 * width, 0.26 * height, 0.99 * width, 0.74 * height), 0, 360, fill=255, width=width // 9)
        case "watch":
            pen.ellipse((0.04 * width, 0.13 * height, 0.96 * width, 0.87 * height), fill=255)
        case "umbrella":
            pen.pieslice((0, 0.02 * height, width, 1.18 * height), 180, 360, fill=255)
            pen.arc((0.2 * width, 0.84 * height, 0.55 * width, height), 0, 180, fill=255, width=width // 12)
        case _:
            pass
    mask = mask.resize((size, item_height(size)), Image.Resampling.BOX)
    return mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else mask


@cache
def ink(kind: Kind, size: int, mirrored: bool) -> Image.Image:
    """Return the mask of an item's dark lines, 0..255.

    The lines are the outline of its silhouette and the hands of a watch.
    """
    mask = silhouette(kind, size, mirrored).filter(ImageFilter.FIND_EDGES)
    if kind == "watch":
        pen = ImageDraw.Draw(mask)
        centre = (size // 2, item_height(size) // 2)
        pen.line((*centre, centre[0], round(0.26 * item_height(size))), fill=255, width=3)
        pen.line((*centre, round(0.72 * size), centre[1]), fill=255, width=3)
    return mask


def shade(material: Material) -> NDArray[np.float32]:
    """Return a tile of blend factors: 0 colour, 1 contrast."""
    y, x = np.mgrid[0:TILE_SIZE, 0:TILE_SIZE].astype(np.float32)
    match material:
        case "leather":  # quilted: a lattice of fine diagonals
            marks = ((x + y) % 18 < 3) | ((x - y) % 18 < 3)
        case "canvas":  # a coarse weave
            marks = (x // 4 + y // 4) % 2 > 0
        case "metal":  # smooth, slanted reflections
            marks = 0.5 + 0.5 * np.sin((x + 0.6 * y) / 5.5)
        case "wood":  # horizontal, slightly wavy grain
            marks = (y + 2 * np.sin(x / 8)) % 9 < 3
        case "wool":  # knitted zigzag
            marks = (y + 1.5 * np.abs(x % 14 - 7)) % 12 < 5
        case "striped cotton":  # vertical stripes
            marks = x % 14 < 6
        case "dotted silk":
            marks = (x % 14 - 7) ** 2 + (y % 14 - 7) ** 2 < 16
    return np.asarray(marks, np.float32)


@cache
def texture(colour: Colour, material: Material) -> Image.Image:
    """Return the texture of a colour and a material."""
    base = np.array(RGB[colour], np.float32)
    contrast = base * 0.5 if colour in LIGHT_COLOURS else base + (255 - base) * 0.5
    blend = shade(material)[:, :, None]
    return Image.fromarray((base + (contrast - base) * blend).round().astype(np.uint8))


def draw(scene: Scene) -> Image.Image:
    """Draw a scene in RGB, 224x224.

    Equal scenes give equal pixels.
    """
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), scene.wall)
    image.paste(scene.floor, (0, scene.horizon, IMAGE_SIZE, IMAGE_SIZE))
    for item in scene.items:
        _paste(image, item)
    tilt = np.linspace(-0.5, 0.5, IMAGE_SIZE, dtype=np.float32) * scene.light_tilt
    pixels = np.asarray(image, np.float32) * (scene.light + tilt)[None, :, None]
    grain = np.random.default_rng(scene.noise_seed).standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), np.float32)
    return Image.fromarray(np.clip(pixels + scene.noise * grain, 0, 255).astype(np.uint8))


def _paste(image: Image.Image, item: Item) -> None:
    third = IMAGE_SIZE / len(POSITIONS)
    left = round(third * (POSITIONS.index(item.position) + 0.5) + item.shift_x - item.size / 2)
    # Keep the item inside its third, so that its position is unambiguous.
    left = min(max(left, round(third * POSITIONS.index(item.position))), IMAGE_SIZE - item.size)
    height = item_height(item.size)
    corner = (left, round(IMAGE_SIZE / 2 + item.shift_y - height / 2))
    tile = texture(item.colour, item.material)
    cut = tile.crop((item.texture_x, item.texture_y, item.texture_x + item.size, item.texture_y + height))
    image.paste(cut, corner, silhouette(item.kind, item.size, item.mirrored))
    image.paste(INK, corner, ink(item.kind, item.size, item.mirrored))
