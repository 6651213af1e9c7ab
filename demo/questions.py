"""Questions about a scene and their right answers.

Every question has exactly one right answer. So "the bag" is used only if the scene has one bag, and "the red item" only
if one item is red.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from demo.chinese import CHINESE
from demo.english import ENGLISH
from demo.phrases import Facts, Phrasebook
from demo.scenes import COLOURS, KINDS, MATERIALS, POSITIONS, Item, Scene

Language = Literal["english", "chinese"]
Topic = Literal["kind", "colour", "material", "count", "position", "description", "yes or no", "two turns"]

LANGUAGES: tuple[Language, ...] = get_args(Language)
TOPICS: tuple[Topic, ...] = get_args(Topic)
PHRASEBOOKS: dict[Language, Phrasebook] = {"english": ENGLISH, "chinese": CHINESE}

ABSENT_SHARE = 0.12  # share of questions about an item that is not in the image

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its right answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One question about an image, or two that belong together."""

    language: Language
    topic: Topic
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn as forms and facts, before it becomes sentences."""

    question: str  # form
    asked: Facts
    answer: str  # form
    said: Facts


def ask(scene: Scene, rng: random.Random, language: Language, topic: Topic) -> Conversation:
    """Make a conversation about a scene. Any topic fits."""
    book = PHRASEBOOKS[language]
    turns = tuple(
        Turn(
            question=book.question(exchange.question, rng.randrange(12), exchange.asked),
            answer=book.answer(exchange.answer, exchange.said),
        )
        for exchange in EXCHANGES[topic](scene, rng)
    )
    return Conversation(language, topic, turns)


def _same(form: str, facts: Facts) -> Exchange:
    """Make an exchange with the same form and facts twice."""
    return Exchange(form, facts, form, facts)


def _unique(scene: Scene) -> list[Item]:
    """List the items whose kind occurs once in the scene."""
    return [item for item in scene.items if len(scene.of_kind(item.kind)) == 1]


def _absent(scene: Scene, rng: random.Random, form: str) -> Exchange:
    kind = rng.choice([kind for kind in KINDS if not scene.of_kind(kind)])
    return Exchange(form, Facts(kind=kind), "absent", Facts(kind=kind))


def _other(rng: random.Random, values: tuple[T, ...], true: T) -> T:
    """Pick the true value half of the time, else another."""
    return true if rng.random() < 0.5 else rng.choice([value for value in values if value != true])


def ask_kind(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for an item's kind, by position, colour or 'this'."""
    style = rng.random()
    item = rng.choice(scene.items)
    if len(scene.items) == 1 and style < 0.4:
        return [_same("kind alone", Facts(kind=item.kind))]
    if style > 0.75 and sum(other.colour == item.colour for other in scene.items) == 1:
        return [Exchange("kind of colour", Facts(colour=item.colour), "kind of colour", _all(item))]
    empty = [position for position in POSITIONS if scene.at(position) is None]
    if empty and rng.random() < ABSENT_SHARE:
        facts = Facts(position=rng.choice(empty))
        return [Exchange("kind at", facts, "nothing at", facts)]
    return [_same("kind at", _all(item))]


def ask_colour(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for an item's colour, by kind or position."""
    return [_ask_attribute(scene, rng, "colour of", "colour at")]


def ask_material(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for an item's material, by kind or position."""
    return [_ask_attribute(scene, rng, "material of", "material at")]


def _ask_attribute(scene: Scene, rng: random.Random, by_kind: str, by_position: str) -> Exchange:
    if rng.random() < ABSENT_SHARE:
        return _absent(scene, rng, by_kind)
    unique = _unique(scene)
    if unique and rng.random() < 0.7:
        return _same(by_kind, _all(rng.choice(unique)))
    return _same(by_position, _all(rng.choice(scene.items)))


def ask_count(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for the number of items, or of one kind."""
    if rng.random() < 0.4:
        return [_same("count items", Facts(count=len(scene.items)))]
    kind = rng.choice(scene.items).kind if rng.random() < 0.75 else rng.choice(KINDS)
    return [_same("count kind", Facts(kind=kind, count=len(scene.of_kind(kind))))]


def ask_position(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for an item's position."""
    unique = _unique(scene)
    if not unique or rng.random() < ABSENT_SHARE:
        return [_absent(scene, rng, "position of")]
    return [_same("position of", _all(rng.choice(unique)))]


def ask_description(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for a description of the whole image."""
    return [_same("description", Facts(count=len(scene.items), items=scene.items))]


def ask_yes_or_no(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask if an item exists, or how it looks."""
    form = rng.choice(("is it there", "is it there at", "is colour", "is material"))
    item = rng.choice(_unique(scene) or scene.items)
    if form == "is it there" or not _unique(scene):
        facts = Facts(kind=_other(rng, KINDS, item.kind))
        there = bool(facts.kind and scene.of_kind(facts.kind))
        return [Exchange("is it there", facts, "is there" if there else "is not there", facts)]
    if form == "is it there at":
        facts = Facts(kind=item.kind, position=_other(rng, POSITIONS, item.position))
        there = facts.position == item.position
        return [Exchange(form, facts, "is there at" if there else "is not there at", facts)]
    return [_check_attribute(item, rng, form, form, form.replace("is ", "is not "))]


def _check_attribute(item: Item, rng: random.Random, form: str, yes: str, no: str) -> Exchange:
    """Ask whether an item has a colour or a material.

    Both answers name the true value.
    """
    if form.endswith("colour"):
        asked = Facts(kind=item.kind, colour=_other(rng, COLOURS, item.colour))
        so = asked.colour == item.colour
    else:
        asked = Facts(kind=item.kind, material=_other(rng, MATERIALS, item.material))
        so = asked.material == item.material
    return Exchange(form, asked, yes if so else no, _all(item))


def ask_two_turns(scene: Scene, rng: random.Random) -> list[Exchange]:
    """Ask for an item's kind or position, then about 'it'."""
    unique = _unique(scene)
    if unique and rng.random() < 0.5:
        item = rng.choice(unique)
        opening = _same("position of", _all(item))
    else:
        item = rng.choice(scene.items)
        opening = _same("kind at", _all(item))
    form = rng.choice(("its colour", "its material", "is it colour", "is it material"))
    if form.startswith("its"):
        return [opening, _same(form, _all(item))]
    attribute = form.removeprefix("is it ")
    return [opening, _check_attribute(item, rng, form, f"it is {attribute}", f"it is not {attribute}")]


def _all(item: Item) -> Facts:
    return Facts(kind=item.kind, colour=item.colour, material=item.material, position=item.position)


EXCHANGES: dict[Topic, Callable[[Scene, random.Random], list[Exchange]]] = {
    "kind": ask_kind,
    "colour": ask_colour,
    "material": ask_material,
    "count": ask_count,
    "position": ask_position,
    "description": ask_description,
    "yes or no": ask_yes_or_no,
    "two turns": ask_two_turns,
}
