"""How questions and answers are worded, in any language: what a phrasebook is.

A form names what is asked or said. A phrasebook holds several wordings of each question and exactly one of each answer,
so that an answer is either right to the letter or wrong. English is in `demo/english.py`, Chinese in `demo/chinese.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.scenes import Colour, Item, Kind, Material, Position

# The word of each fact in one grammatical shape, by the name that sentences call that shape by.
Table = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a sentence is about; a form uses those it names."""

    kind: Kind | None = None
    colour: Colour | None = None
    material: Material | None = None
    position: Position | None = None
    count: int | None = None
    items: Sequence[Item] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrasebook:
    """The words and sentences of one language."""

    by_kind: Table
    by_colour: Table
    by_material: Table
    by_position: Table
    items_by_count: Sequence[str]  # how many items there are
    kinds_by_count: Sequence[str]  # how many of a kind there are
    detail: str  # one item within a description
    joins: tuple[str, str]  # between the details of a description: all but the last two, the last two
    questions: Mapping[str, Sequence[str]]
    answers: Mapping[str, str]

    def question(self, form: str, wording: int, facts: Facts) -> str:
        """Word a question; `wording` picks among its wordings, modulo their number."""
        wordings = self.questions[form]
        return self._fill(wordings[wording % len(wordings)], facts)

    def answer(self, form: str, facts: Facts) -> str:
        """Word an answer, in the only right way."""
        sentence = self._fill(self.answers[form], facts)
        return sentence[0].upper() + sentence[1:]

    def _fill(self, sentence: str, facts: Facts) -> str:
        words = self._words(facts)
        if facts.count is not None:
            words["items"] = self.items_by_count[facts.count]
            if facts.kind is not None:
                words["counted"] = self.kinds_by_count[facts.count].format_map(words)
        if facts.items:
            words["details"] = self._details(facts.items)
        return sentence.format_map(words)

    def _words(self, facts: Facts) -> dict[str, str]:
        tables = (
            (facts.kind, self.by_kind),
            (facts.colour, self.by_colour),
            (facts.material, self.by_material),
            (facts.position, self.by_position),
        )
        return {shape: words[fact] for fact, table in tables if fact is not None for shape, words in table.items()}

    def _details(self, items: Sequence[Item]) -> str:
        *others, last = [self._detail(item) for item in items]
        comma, conjunction = self.joins
        return conjunction.join([comma.join(others), last]) if others else last

    def _detail(self, item: Item) -> str:
        facts = Facts(kind=item.kind, colour=item.colour, material=item.material, position=item.position)
        return self._fill(self.detail, facts)
