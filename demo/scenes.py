"""Scenes: one to three shop items, made from a seed.

By construction, every attribute is visible in the image: an item fills most of its third, silhouettes and textures are
distinct at the size of a patch, and the colours are far apart. `demo/drawing.py` turns a scene into pixels.
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["bag", "watch", "shirt", "shoe", "cup", "hat", "umbrella", "bottle"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "black", "white"]
Material = Literal["leather", "canvas", "metal", "wood", "wool", "striped cotton", "dotted silk"]
Position = Literal["left", "middle", "right"]

KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS: tuple[Colour, ...] = get_args(Colour)
MATERIALS: tuple[Material, ...] = get_args(Material)
POSITIONS: tuple[Position, ...] = get_args(Position)

# Four disjoint ranges: for training, for the validation curve, for the evaluation of releases, and for their probes.
TRAINING_SEEDS = range(1_000_000_000)
VALIDATION_SEEDS = range(1_000_000_000, 2_000_000_000)
HELD_OUT_SEEDS = range(2_000_000_000, 3_000_000_000)
PROBE_SEEDS = range(3_000_000_000, 4_000_000_000)

REPEATED_KIND_SHARE = 0.25  # of scenes with several items. Without it, every count of a kind would be 0 or 1.


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item, in one third of the image."""

    kind: Kind
    colour: Colour
    material: Material
    position: Position
    size: int  # width in pixels
    shift_x: int  # pixels from the centre of its third
    shift_y: int  # pixels from the middle of the image
    mirrored: bool
    texture_x: int  # offset into its texture, pixels
    texture_y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An image before it is drawn."""

    items: tuple[Item, ...]  # from left to right
    wall: tuple[int, int, int]  # RGB
    floor: tuple[int, int, int]  # RGB
    horizon: int  # where the floor begins, pixels from the top
    light: float  # brightness factor
    light_tilt: float  # change of the brightness factor from the left edge to the right
    noise: float  # standard deviation of the grain, on the scale 0 to 255
    noise_seed: int

    def at(self, position: Position) -> Item | None:
        """Find the item in one third of the image."""
        return next((item for item in self.items if item.position == position), None)

    def of_kind(self, kind: Kind) -> list[Item]:
        """List the items of one kind, from left to right."""
        return [item for item in self.items if item.kind == kind]


def make_scene(seed: int) -> Scene:
    """Make the scene of a seed, the same every time."""
    rng = random.Random(seed)
    positions = sorted(rng.sample(POSITIONS, rng.randint(1, 3)), key=POSITIONS.index)
    kinds: list[Kind] = rng.sample(KINDS, len(positions))
    if len(kinds) > 1 and rng.random() < REPEATED_KIND_SHARE:
        kinds[rng.randrange(1, len(kinds))] = kinds[0]
    wall_level, floor_level = rng.randint(150, 205), rng.randint(120, 175)
    return Scene(
        items=tuple(make_item(rng, kind, position) for kind, position in zip(kinds, positions, strict=True)),
        wall=_tint(rng, wall_level),
        floor=_tint(rng, floor_level),
        horizon=rng.randint(120, 190),
        light=rng.uniform(0.86, 1.08),
        light_tilt=rng.uniform(-0.1, 0.1),
        noise=rng.uniform(0.0, 7.0),
        noise_seed=rng.randrange(2**32),
    )


def make_item(rng: random.Random, kind: Kind, position: Position) -> Item:
    """Make an item with random colour, material and offset."""
    return Item(
        kind=kind,
        colour=rng.choice(COLOURS),
        material=rng.choice(MATERIALS),
        position=position,
        size=rng.randint(60, 72),
        shift_x=rng.randint(-4, 4),
        shift_y=rng.randint(-36, 36),
        mirrored=rng.random() < 0.5,
        texture_x=rng.randrange(64),
        texture_y=rng.randrange(64),
    )


def _tint(rng: random.Random, level: int) -> tuple[int, int, int]:
    """Pick a pale colour near a level of grey.

    Backgrounds must not look like an item's colour.
    """
    return (level + rng.randint(-14, 14), level + rng.randint(-14, 14), level + rng.randint(-14, 14))
