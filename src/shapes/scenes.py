"""What can be drawn: four colours of three shapes in a 3x3 grid of cells, and the renderer.

A picture is 24x24 pixels, a cell 8x8; each cell is empty or holds one object drawn from a fixed bitmap
on a plain background. Everything else of the drawn world (prompts, plans, judge) speaks in these terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

GRID = 3
CELLS = GRID * GRID
CELL_PIXELS = 8
IMAGE_PIXELS = GRID * CELL_PIXELS

#: RGB in [0, 1].
COLORS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.15),
    "green": (0.10, 0.62, 0.25),
    "blue": (0.13, 0.30, 0.85),
    "yellow": (0.97, 0.75, 0.05),
}
BACKGROUND = (0.94, 0.94, 0.92)

#: One bitmap a shape, "#" = painted. Any two differ in at least 12 of the 64 pixels.
BITMAPS: Mapping[str, tuple[str, ...]] = {
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
}

#: Names of the cells, row by row; a plan names a place by one of these words.
PLACES = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")

#: Rows and columns of the grid, as prompts name them, with the cells they hold.
LINES: Mapping[str, tuple[int, ...]] = {
    "top row": (0, 1, 2),
    "middle row": (3, 4, 5),
    "bottom row": (6, 7, 8),
    "left column": (0, 3, 6),
    "middle column": (1, 4, 7),
    "right column": (2, 5, 8),
}


class ObjectKind(NamedTuple):
    """A colour of `COLORS` and a shape of `BITMAPS`."""

    color: str
    shape: str

    @property
    def name(self) -> str:
        """For instance "red circle"."""
        return f"{self.color} {self.shape}"


#: The twelve things that can stand in a cell; the order numbers them (`KIND_INDEX`).
OBJECT_KINDS = tuple(ObjectKind(color, shape) for color in COLORS for shape in BITMAPS)
KIND_INDEX: Mapping[ObjectKind, int] = {kind: index for index, kind in enumerate(OBJECT_KINDS)}
EMPTY = len(OBJECT_KINDS)

#: Cell number (row by row from the top left) -> what stands there, in the order a plan lists it.
Scene = Mapping[int, ObjectKind]


def place_cells(place: str) -> tuple[int, ...]:
    """The cells a place name allows: one cell of `PLACES`, or a row or column of `LINES`.

    Raises ValueError for any other name.
    """
    if place in LINES:
        return LINES[place]
    if place in PLACES:
        return (PLACES.index(place),)
    raise ValueError(f"place {place!r} is unknown; use one of {', '.join((*PLACES, *LINES))}")


@lru_cache(maxsize=1)
def cell_templates() -> Tensor:
    """The 13 clean cells (13, 3, 8, 8) float32 in [0, 1]: `OBJECT_KINDS` in order, then the empty cell."""
    background = torch.tensor(BACKGROUND)[:, None, None].expand(3, CELL_PIXELS, CELL_PIXELS)
    cells = []
    for kind in OBJECT_KINDS:
        bitmap = torch.tensor([[pixel == "#" for pixel in row] for row in BITMAPS[kind.shape]])
        paint = torch.tensor(COLORS[kind.color])[:, None, None].expand_as(background)
        cells.append(torch.where(bitmap, paint, background))
    return torch.stack([*cells, background])


def cells_to_pixels(cells: Tensor) -> Tensor:
    """Put 9 cell pictures (N, 9, 3, 8, 8) together to images (N, 3, 24, 24); keeps dtype."""
    grid = cells.unflatten(1, (GRID, GRID))
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(cells.shape[0], 3, IMAGE_PIXELS, IMAGE_PIXELS)


def pixels_to_cells(pixels: Tensor) -> Tensor:
    """The inverse of `cells_to_pixels`: images (N, 3, 24, 24) -> cells (N, 9, 3, 8, 8)."""
    grid = pixels.reshape(pixels.shape[0], 3, GRID, CELL_PIXELS, GRID, CELL_PIXELS)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def scene_labels(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as numbers (N, 9) int64: the kind's number in each cell, `EMPTY` where nothing stands."""
    labels = torch.full((len(scenes), CELLS), EMPTY, dtype=torch.int64)
    for row, scene in enumerate(scenes):
        for cell, kind in scene.items():
            labels[row, cell] = KIND_INDEX[kind]
    return labels


def render_labels(labels: Tensor) -> Tensor:
    """Images (N, 3, 24, 24) float32 in [0, 1] of cell numbers (N, 9)."""
    return cells_to_pixels(cell_templates()[labels])


def render(scenes: Sequence[Scene]) -> Tensor:
    """Images (N, 3, 24, 24) float32 in [0, 1] of scenes."""
    return render_labels(scene_labels(scenes))
