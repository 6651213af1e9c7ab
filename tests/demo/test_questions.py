"""Questions have answers that are true of the scene."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.chinese import CHINESE
from demo.english import ENGLISH
from demo.questions import LANGUAGES, PHRASEBOOKS, TOPICS, Conversation, Language, Topic, ask
from demo.scenes import COLOURS, KINDS, MATERIALS, Scene, make_scene

seeds = st.integers(0, 100_000)
NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3}
PLACES = {"on the left": "left", "in the middle": "middle", "on the right": "right"}


def english(seed: int, topic: Topic) -> tuple[Scene, Conversation]:
    scene = make_scene(seed)
    return scene, ask(scene, random.Random(seed), "english", topic)


def one_of(words: tuple[str, ...]) -> str:
    return "(" + "|".join(words) + ")"


PLACE = one_of(tuple(PLACES))
KIND, COLOUR, MATERIAL = one_of(KINDS), one_of(COLOURS), one_of(MATERIALS)


@given(seeds)
def test_answers_about_a_kind_are_true_and_unambiguous(seed: int) -> None:
    """'The bag' requires exactly one bag in the scene."""
    for topic in TOPICS:
        scene, conversation = english(seed, topic)
        for turn in conversation.turns:
            said = re.fullmatch(
                rf"(?:Yes, |No, )?[Tt]he {KIND} is (?:{COLOUR}|made of {MATERIAL}|{PLACE})\.", turn.answer
            )
            if said:
                kind, colour, material, place = said.groups()
                (item,) = [item for item in scene.items if item.kind == kind]
                assert colour in (None, item.colour)
                assert material in (None, item.material)
                assert place is None or PLACES[place] == item.position


@given(seeds)
def test_answers_about_a_position_are_true_of_the_item_there(seed: int) -> None:
    for topic in ("kind", "colour", "material"):
        scene, conversation = english(seed, topic)
        (turn,) = conversation.turns
        if said := re.fullmatch(rf"The item {PLACE} is (?:{COLOUR}|made of {MATERIAL})\.", turn.answer):
            place, colour, material = said.groups()
            item = next(item for item in scene.items if item.position == PLACES[place])
            assert (colour or item.colour, material or item.material) == (item.colour, item.material)
        elif said := re.fullmatch(rf"There is (nothing|an? {KIND}) {PLACE}\.", turn.answer):
            found = [item.kind for item in scene.items if item.position == PLACES[said[3]]]
            assert found == ([said[2]] if said[2] else [])


@given(seeds)
def test_counts_match_the_scene(seed: int) -> None:
    scene, conversation = english(seed, "count")
    said = re.fullmatch(r"There (?:is|are) (no|one|two|three) (\w+)\.", conversation.turns[0].answer)
    assert said
    kinds = {plural: kind for kind, plural in ENGLISH.by_kind["kinds"].items()} | {kind: kind for kind in KINDS}
    counted = scene.items if said[2].startswith("item") else [x for x in scene.items if x.kind == kinds[said[2]]]
    assert len(counted) == NUMBERS[said[1]]


@given(seeds)
def test_a_description_names_every_item_in_order(seed: int) -> None:
    scene, conversation = english(seed, "description")
    words = {"wood": "wooden", "wool": "woollen"}
    expected = [f"{x.colour} {words.get(x.material, x.material)} {x.kind}" for x in scene.items]
    places = [conversation.turns[0].answer.index(words) for words in expected]
    assert places == sorted(places)


@given(seeds)
def test_the_answer_is_yes_exactly_if_the_fact_is_true(seed: int) -> None:
    scene, conversation = english(seed, "yes or no")
    (turn,) = conversation.turns
    if asked := re.search(rf"the {KIND} {COLOUR}\?|(?:the|this) {KIND} made of {MATERIAL}\?", turn.question):
        kind, colour, other_kind, material = asked.groups()
        item = next(item for item in scene.items if item.kind == (kind or other_kind))
        assert turn.answer.startswith("Yes, ") == (
            (colour or item.colour, material or item.material) == (item.colour, item.material)
        )
    elif asked := re.search(rf"an? {KIND}(?: {PLACE})?", turn.question):
        there = [
            x
            for x in scene.items
            if x.kind == asked[1] and asked[2] in (None, *(p for p, q in PLACES.items() if q == x.position))
        ]
        assert turn.answer.startswith("Yes, ") == bool(there)


@given(seeds)
def test_it_refers_to_the_item_of_the_previous_turn(seed: int) -> None:
    scene, conversation = english(seed, "two turns")
    opening, follow_up = conversation.turns
    place = re.search(PLACE, opening.answer)
    assert place
    item = next(item for item in scene.items if item.position == PLACES[place[0]])
    said = re.fullmatch(rf"(?:Yes, |No, )?[Ii]t is (?:{COLOUR}|made of {MATERIAL})\.", follow_up.answer)
    assert said
    assert said[1] in (None, item.colour)
    assert said[2] in (None, item.material)


@given(seeds)
def test_both_languages_state_the_same_facts(seed: int) -> None:
    """So the tests of English answers also cover Chinese ones."""
    scene = make_scene(seed)
    for topic in TOPICS:
        said = [ask(scene, random.Random(seed), language, topic).turns for language in LANGUAGES]
        for turn, translated in zip(*said, strict=True):
            for colour, word in CHINESE.by_colour["colour"].items():
                assert (f" {colour}" in f" {turn.answer}") == (word in translated.answer)
            for kind, name in CHINESE.by_kind["kind"].items():
                if name != "包":  # a bag, and part of no other name
                    assert bool(re.search(rf"\b{kind}(e?s)?\b", turn.answer)) == (name in translated.answer)


@pytest.mark.parametrize("part", ["questions", "answers"])
def test_both_phrasebooks_have_the_same_forms(part: str) -> None:
    assert set(getattr(ENGLISH, part)) == set(getattr(CHINESE, part))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("topic", TOPICS)
def test_every_scene_has_a_question_on_every_topic(language: Language, topic: Topic) -> None:
    for seed in range(100):
        for turn in ask(make_scene(seed), random.Random(seed), language, topic).turns:
            assert turn.question[-1] in "?？.。"
            assert turn.answer[-1] in ".。"
            assert "{" not in turn.question + turn.answer


def test_training_uses_every_wording() -> None:
    """The model understands only wordings that training uses."""
    for language in LANGUAGES:
        book = PHRASEBOOKS[language]
        asked = {
            turn.question
            for seed in range(900)
            for topic in TOPICS
            for turn in ask(make_scene(seed), random.Random(seed), language, topic).turns
        }
        for wordings in book.questions.values():
            for wording in wordings:
                pattern = re.sub(r"\\{\w+\\}", ".+", re.escape(wording))
                assert any(re.fullmatch(pattern, question) for question in asked), wording
