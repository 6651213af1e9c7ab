"""Phrasebooks: the wordings of questions and answers in one language.

A form names a kind of sentence, such as "colour of". A phrasebook has several wordings for each form of question, and
exactly one for each form of answer: an answer is either exactly right or wrong. `demo/english.py` and
`demo/chinese.py` are phrasebooks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.scenes import Colour, Item, Kind, Material, Position

# Placeholder in a sentence -> fact -> word, for example "a_kind" -> "bag" -> "a bag".
Table = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts that a sentence may mention."""

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
    items_by_count: Sequence[str]  # phrase for 0, 1, 2 or 3 items
    kinds_by_count: Sequence[str]  # phrase for 0, 1, 2 or 3 items of one kind
    detail: str  # one item in a description
    joins: tuple[str, str]  # separators in a description: between items, before the last item
    questions: Mapping[str, Sequence[str]]
    answers: Mapping[str, str]

    def question(self, form: str, wording: int, facts: Facts) -> str:
        """Return a question in wording number `wording`, modulo their number."""
        wordings = self.questions[form]
        return self._fill(wordings[wording % len(wordings)], facts)

    def answer(self, form: str, facts: Facts) -> str:
        """Return the only right wording of an answer."""
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
