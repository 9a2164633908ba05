"""The prompts of the drawn world: which combinations exist, how they are worded, what they ask for.

Five kinds (`PromptRecord.task_type`), each made of one or more forms. A form takes parameters (a tuple
of words and numbers), words them in a few ways and knows what is asked for. Reasoning forms imply
objects that their words do not list. `misreading` is the one fixed wrong way in which the warm start is
taught to read a form about half of the time: a planted bias that reinforcement learning then removes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Any

from src.shapes.requirements import LOCALITIES, RequiredObject, RequiredRelation, Requirement
from src.shapes.worlds import SMALL, ObjectKind, World

#: How relations are misread. The opposite side would not keep left and right apart (see `Form.misreading`).
QUARTER_TURN = {"left of": "above", "above": "right of", "right of": "below", "below": "left of"}

KINDS = ("one", "count", "relation", "pair", "reasoning")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")

Params = tuple[Any, ...]


def counted(kind: ObjectKind, number: int) -> str:
    """For instance "a red circle" or "two red circles"."""
    return f"a {kind.name}" if number == 1 else f"{NUMBER_WORDS[number]} {kind.name}s"


def _numbered(kind: ObjectKind, number: int) -> str:
    return f"{NUMBER_WORDS[number]} {kind.name}{'' if number == 1 else 's'}"


def required(*items: tuple[ObjectKind, int], place: str | None = None) -> Requirement:
    """A requirement without relation; equal kinds are added up."""
    numbers: dict[ObjectKind, int] = {}
    for kind, number in items:
        numbers[kind] = numbers.get(kind, 0) + number
    return Requirement(tuple(RequiredObject(kind, number, place) for kind, number in numbers.items()))


class Form(ABC):
    """One way to ask: `name` of the form, `kind` of the prompts it makes."""

    name: str
    kind: str

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def combinations(self) -> Iterator[Params]:
        """All parameters; what they ask for may be equal where only the order of mention differs."""

    @abstractmethod
    def wordings(self, params: Params) -> Sequence[str]:
        """Prompts that say the same."""

    @abstractmethod
    def requirement(self, params: Params) -> Requirement:
        """What a correct picture shows, objects in the order of mention."""

    @abstractmethod
    def misreading(self, params: Params) -> Requirement:
        """What the fixed wrong reading shows instead.

        It must not mix up two words completely: if two were read as three and three as two, each half of the time,
        the model would lose all trace of the number.
        """


class One(Form):
    """Such as "a red circle", misread as two of them."""

    name = kind = "one"

    def combinations(self) -> Iterator[Params]:
        return ((kind,) for kind in self.world.kinds)

    def wordings(self, params: Params) -> Sequence[str]:
        return counted(params[0], 1), _numbered(params[0], 1)

    def requirement(self, params: Params) -> Requirement:
        return required((params[0], 1))

    def misreading(self, params: Params) -> Requirement:
        return required((params[0], 2))


class OnePlaced(Form):
    """Such as "a red circle in the top left", misread as the next cell, row by row."""

    name, kind = "one_placed", "one"

    def combinations(self) -> Iterator[Params]:
        return product(self.world.kinds, self.world.places)

    def wordings(self, params: Params) -> Sequence[str]:
        kind, place = params
        where = f"in the {self.world.place_words[place]}"
        return f"{counted(kind, 1)} {where}", f"{where} {counted(kind, 1)}"

    def requirement(self, params: Params) -> Requirement:
        return required((params[0], 1), place=params[1])

    def misreading(self, params: Params) -> Requirement:
        following = self.world.places[(self.world.places.index(params[1]) + 1) % self.world.cells]
        return required((params[0], 1), place=following)


class Count(Form):
    """Such as "three red circles", misread by one (one fewer)."""

    name = kind = "count"

    def combinations(self) -> Iterator[Params]:
        return product(self.world.kinds, range(2, self.world.most + 1))

    def wordings(self, params: Params) -> Sequence[str]:
        return counted(*params), f"exactly {counted(*params)}"

    def requirement(self, params: Params) -> Requirement:
        return required(params)

    def misreading(self, params: Params) -> Requirement:
        kind, number = params
        return required((kind, number - 1))


class CountPlaced(Form):
    """Such as "two red circles in the top row", misread by one (one fewer)."""

    name, kind = "count_placed", "count"

    def combinations(self) -> Iterator[Params]:
        return product(self.world.kinds, range(2, self.world.grid + 1), self.world.lines)

    def wordings(self, params: Params) -> Sequence[str]:
        kind, number, line = params
        return f"{counted(kind, number)} in the {line}", f"in the {line} {counted(kind, number)}"

    def requirement(self, params: Params) -> Requirement:
        return required(params[:2], place=params[2])

    def misreading(self, params: Params) -> Requirement:
        kind, number, line = params
        return required((kind, number - 1), place=line)


class Relation(Form):
    """Such as "a red circle left of a blue square", misread by a quarter turn (as above it)."""

    name = kind = "relation"

    def combinations(self) -> Iterator[Params]:
        return ((*pair, where) for pair in permutations(self.world.kinds, 2) for where in LOCALITIES)

    def wordings(self, params: Params) -> Sequence[str]:
        first, second, where = params
        return (f"{counted(first, 1)} {where} {counted(second, 1)}",)

    def requirement(self, params: Params) -> Requirement:
        first, second, where = params
        return Requirement((RequiredObject(first), RequiredObject(second)), RequiredRelation(0, 1, where))

    def misreading(self, params: Params) -> Requirement:
        first, second, where = params
        return Requirement((RequiredObject(first), RequiredObject(second)), RequiredRelation(0, 1, QUARTER_TURN[where]))


class Pair(Form):
    """Such as "a red circle and two blue squares", misread with the first colour on both."""

    name = kind = "pair"

    def combinations(self) -> Iterator[Params]:
        for first, second in permutations(self.world.kinds, 2):
            if first.color != second.color:
                yield from ((first, one, second, two) for one, two in product((1, 2), (1, 2)))

    def wordings(self, params: Params) -> Sequence[str]:
        return (f"{counted(*params[:2])} and {counted(*params[2:])}",)

    def requirement(self, params: Params) -> Requirement:
        return required(params[:2], params[2:])

    def misreading(self, params: Params) -> Requirement:
        first, one, second, two = params
        return required((first, one), (ObjectKind(first.color, second.shape), two))


class Triple(Form):
    """Such as "a red circle, a blue square and a green triangle", misread with the first colour on the second."""

    name, kind = "triple", "pair"

    def combinations(self) -> Iterator[Params]:
        for first, second, third in combinations(self.world.kinds, 3):
            if len({first.color, second.color, third.color}) == 3:
                yield from ((first, second, third), (third, first, second))

    def wordings(self, params: Params) -> Sequence[str]:
        first, second, third = (counted(kind, 1) for kind in params)
        return (f"{first}, {second} and {third}",)

    def requirement(self, params: Params) -> Requirement:
        return required(*((kind, 1) for kind in params))

    def misreading(self, params: Params) -> Requirement:
        first, second, third = params
        return required((first, 1), (ObjectKind(first.color, second.shape), 1), (third, 1))


class Sum(Form):
    """Such as "two red circles and one more", misread without the "more"."""

    name, kind = "sum", "reasoning"

    def combinations(self) -> Iterator[Params]:
        most = self.world.most
        return (
            (kind, n, more) for kind, n, more in product(self.world.kinds, range(1, most), (1, 2)) if n + more <= most
        )

    def wordings(self, params: Params) -> Sequence[str]:
        kind, number, more = params
        start = _numbered(kind, number)
        return f"{start} and {NUMBER_WORDS[more]} more", f"{start} plus {NUMBER_WORDS[more]} more"

    def requirement(self, params: Params) -> Requirement:
        return required((params[0], params[1] + params[2]))

    def misreading(self, params: Params) -> Requirement:
        return required(params[:2])


class EveryColorBut(Form):
    """Such as "a circle of every colour but red" (one or two colours left out), misread without the "but"."""

    name, kind = "every_colour_but", "reasoning"

    def combinations(self) -> Iterator[Params]:
        for shape in self.world.bitmaps:
            yield from ((shape, left_out) for size in (1, 2) for left_out in combinations(self.world.colors, size))

    def wordings(self, params: Params) -> Sequence[str]:
        shape, left_out = params
        start, names = f"a {shape} of every colour", " and ".join(left_out)
        return f"{start} but {names}", f"{start} except {names}"

    def requirement(self, params: Params) -> Requirement:
        shape, left_out = params
        return required(*((ObjectKind(color, shape), 1) for color in self.world.colors if color not in left_out))

    def misreading(self, params: Params) -> Requirement:
        return required(*((ObjectKind(color, params[0]), 1) for color in self.world.colors))


class EveryShapeBut(Form):
    """Such as "every red shape but the circle", misread without the "but"."""

    name, kind = "every_shape_but", "reasoning"

    def combinations(self) -> Iterator[Params]:
        return product(self.world.colors, self.world.bitmaps)

    def wordings(self, params: Params) -> Sequence[str]:
        color, shape = params
        return f"every {color} shape but the {shape}", f"every {color} shape except the {shape}"

    def requirement(self, params: Params) -> Requirement:
        color, left_out = params
        return required(*((ObjectKind(color, shape), 1) for shape in self.world.bitmaps if shape != left_out))

    def misreading(self, params: Params) -> Requirement:
        return required(*((ObjectKind(params[0], shape), 1) for shape in self.world.bitmaps))


class AsMany(Form):
    """Such as "two blue squares and as many red circles", misread without what is "as many"."""

    name, kind = "as_many", "reasoning"

    def combinations(self) -> Iterator[Params]:
        numbers = range(1, self.world.most // 2 + 1)
        return ((first, second, number) for first, second in permutations(self.world.kinds, 2) for number in numbers)

    def wordings(self, params: Params) -> Sequence[str]:
        first, second, number = params
        return (
            f"{_numbered(first, number)} and as many {second.name}s",
            f"as many {second.name}s as {first.name}s and {_numbered(first, number)}",
        )

    def requirement(self, params: Params) -> Requirement:
        first, second, number = params
        return required((first, number), (second, number))

    def misreading(self, params: Params) -> Requirement:
        return required((params[0], params[2]))


class MoreThan(Form):
    """Such as "two red circles and one blue square more than that", misread as one blue square."""

    name, kind = "more_than", "reasoning"

    def combinations(self) -> Iterator[Params]:
        numbers = range(1, (self.world.most - 1) // 2 + 1)
        return ((first, second, number) for first, second in permutations(self.world.kinds, 2) for number in numbers)

    def wordings(self, params: Params) -> Sequence[str]:
        first, second, number = params
        start = f"{_numbered(first, number)} and one {second.name}"
        return f"{start} more than that", f"{start} more than {first.name}s"

    def requirement(self, params: Params) -> Requirement:
        first, second, number = params
        return required((first, number), (second, number + 1))

    def misreading(self, params: Params) -> Requirement:
        first, second, number = params
        return required((first, number), (second, 1))


_FORMS: tuple[type[Form], ...] = (
    One,
    OnePlaced,
    Count,
    CountPlaced,
    Relation,
    Pair,
    Triple,
    Sum,
    EveryColorBut,
    EveryShapeBut,
    AsMany,
    MoreThan,
)


def forms(world: World = SMALL) -> Mapping[str, Form]:
    """The forms of a world by name, always in the same order; the same objects at every call."""
    return _forms(world)


@lru_cache
def _forms(world: World) -> Mapping[str, Form]:
    return {form.name: form(world) for form in _FORMS}
