"""The colours, shapes and places of a world of coloured shapes on a grid.

A picture is a square grid of cells; each cell is empty or holds one object drawn from a fixed bitmap on a plain
background. `SMALL` is the world of the embedded checkpoint, for a laptop's CPU; `LARGE` the same with more cells, more
pixels and more kinds of object, for a card. Everything else of the drawn world (prompts, plans, judge, tokens,
recipe) is made from a `World`, by default `SMALL`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

BACKGROUND = (0.94, 0.94, 0.92)


class ObjectKind(NamedTuple):
    """A colour and a shape of a world."""

    color: str
    shape: str

    @property
    def name(self) -> str:
        """For instance "red circle"."""
        return f"{self.color} {self.shape}"


#: Cell number (row by row from the top left) -> what stands there, in the order a plan lists it.
Scene = Mapping[int, ObjectKind]


@dataclass(frozen=True, eq=False)
class World:
    """One world; compared, and cached by, as the object it is.

    colors: name -> RGB in [0, 1]. bitmaps: shape -> rows of a square picture, "#" = painted. places: what plans call
    the cells, row by row; a word each. lines: name of a row or column -> its cells. place_words: what prompts call a
    cell or a line. most: the largest number of objects a prompt asks for.
    """

    name: str
    colors: Mapping[str, tuple[float, float, float]]
    bitmaps: Mapping[str, tuple[str, ...]]
    places: tuple[str, ...]
    lines: Mapping[str, tuple[int, ...]]
    place_words: Mapping[str, str]
    most: int

    @cached_property
    def grid(self) -> int:
        """Cells in a row, and rows."""
        return round(len(self.places) ** 0.5)

    @property
    def cells(self) -> int:
        return len(self.places)

    @cached_property
    def cell_pixels(self) -> int:
        return len(next(iter(self.bitmaps.values())))

    @property
    def image_pixels(self) -> int:
        return self.grid * self.cell_pixels

    @cached_property
    def kinds(self) -> tuple[ObjectKind, ...]:
        """The things that can stand in a cell; the order numbers them (`kind_index`)."""
        return tuple(ObjectKind(color, shape) for color, shape in product(self.colors, self.bitmaps))

    @cached_property
    def kind_index(self) -> Mapping[ObjectKind, int]:
        return {kind: index for index, kind in enumerate(self.kinds)}

    @property
    def empty(self) -> int:
        """The number of a cell in which nothing stands."""
        return len(self.kinds)

    @property
    def unclear(self) -> int:
        """The number the judge gives a cell that shows nothing it knows."""
        return self.empty + 1

    def place_cells(self, place: str) -> tuple[int, ...]:
        """The cells a place name allows: one cell of `places`, or a row or column of `lines`.

        Raises ValueError for any other name.
        """
        if place in self.lines:
            return self.lines[place]
        if place in self.places:
            return (self.places.index(place),)
        raise ValueError(f"place {place!r} is unknown; use one of {', '.join((*self.places, *self.lines))}")


def _lines(rows: Sequence[str], columns: Sequence[str]) -> dict[str, tuple[int, ...]]:
    grid = len(rows)
    of_rows = {f"{name} row": tuple(grid * row + i for i in range(grid)) for row, name in enumerate(rows)}
    of_columns = {
        f"{name} column": tuple(grid * i + column for i in range(grid)) for column, name in enumerate(columns)
    }
    return {**of_rows, **of_columns}


_SMALL_LINES = _lines(("top", "middle", "bottom"), ("left", "middle", "right"))

#: 24x24 px, a grid of 3x3 cells of 8x8, 12 kinds. Any two bitmaps differ in at least 12 of the 64 pixels.
SMALL = World(
    name="small",
    colors={
        "red": (0.85, 0.12, 0.15),
        "green": (0.10, 0.62, 0.25),
        "blue": (0.13, 0.30, 0.85),
        "yellow": (0.97, 0.75, 0.05),
    },
    bitmaps={
        "circle": (
            "........",
            "..####..",
            ".##..##.",
            ".#....#.",
            ".#....#.",
            ".##..##.",
            "..####..",
            "........",
        ),
        "square": (
            "........",
            ".######.",
            ".######.",
            ".######.",
            ".######.",
            ".######.",
            ".######.",
            "........",
        ),
        "triangle": (
            "........",
            "...##...",
            "...##...",
            "..####..",
            "..####..",
            ".######.",
            ".######.",
            "........",
        ),
    },
    places=("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right"),
    lines=_SMALL_LINES,
    place_words={
        "top-left": "top left",
        "top": "top middle",
        "top-right": "top right",
        "left": "middle left",
        "center": "center",
        "right": "middle right",
        "bottom-left": "bottom left",
        "bottom": "bottom middle",
        "bottom-right": "bottom right",
        **{line: line for line in _SMALL_LINES},
    },
    most=5,
)

_ROWS = ("top", "upper", "lower", "bottom")
_COLUMNS = ("far-left", "left", "right", "far-right")
_LARGE_LINES = _lines(_ROWS, [column.replace("-", " ") for column in _COLUMNS])

#: 48x48 px, a grid of 4x4 cells of 12x12, 30 kinds. Any two bitmaps differ in at least 20 of the 144 pixels.
LARGE = World(
    name="large",
    colors={**SMALL.colors, "purple": (0.56, 0.20, 0.72), "black": (0.12, 0.12, 0.14)},
    bitmaps={
        "circle": (
            "............",
            "....####....",
            "..########..",
            "..###..###..",
            ".###....###.",
            ".##......##.",
            ".##......##.",
            ".###....###.",
            "..###..###..",
            "..########..",
            "....####....",
            "............",
        ),
        "square": (
            "............",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            ".##########.",
            "............",
        ),
        "triangle": (
            "............",
            ".....##.....",
            ".....##.....",
            "....####....",
            "....####....",
            "...######...",
            "...######...",
            "..########..",
            "..########..",
            ".##########.",
            ".##########.",
            "............",
        ),
        "diamond": (
            "............",
            ".....##.....",
            "....####....",
            "...##..##...",
            "..##....##..",
            ".##......##.",
            ".##......##.",
            "..##....##..",
            "...##..##...",
            "....####....",
            ".....##.....",
            "............",
        ),
        "heart": (
            "............",
            "..##....##..",
            ".####..####.",
            ".##########.",
            ".##########.",
            ".##########.",
            "..########..",
            "...######...",
            "....####....",
            ".....##.....",
            "............",
            "............",
        ),
    },
    places=tuple(f"{row}-{column}" for row, column in product(_ROWS, _COLUMNS)),
    lines=_LARGE_LINES,
    place_words={
        **{f"{row}-{column}": f"{row} {column.replace('-', ' ')}" for row, column in product(_ROWS, _COLUMNS)},
        **{line: line for line in _LARGE_LINES},
    },
    most=7,
)

WORLDS: Mapping[str, World] = {world.name: world for world in (SMALL, LARGE)}
