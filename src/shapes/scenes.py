"""Scenes as numbers and as pictures: the renderer of the drawn world."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from src.shapes.worlds import BACKGROUND, SMALL, Scene, World


@lru_cache
def cell_templates(world: World = SMALL) -> Tensor:
    """The clean cells (K + 1, 3, P, P) float32 in [0, 1]: the world's kinds in order, then the empty cell."""
    background = torch.tensor(BACKGROUND)[:, None, None].expand(3, world.cell_pixels, world.cell_pixels)
    cells = []
    for kind in world.kinds:
        bitmap = torch.tensor([[pixel == "#" for pixel in row] for row in world.bitmaps[kind.shape]])
        paint = torch.tensor(world.colors[kind.color])[:, None, None].expand_as(background)
        cells.append(torch.where(bitmap, paint, background))
    return torch.stack([*cells, background])


def cells_to_pixels(cells: Tensor, world: World = SMALL) -> Tensor:
    """Put the C cell pictures (N, C, 3, P, P) together to images (N, 3, H, H); keeps dtype."""
    grid = cells.unflatten(1, (world.grid, world.grid))
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(cells.shape[0], 3, world.image_pixels, world.image_pixels)


def pixels_to_cells(pixels: Tensor, world: World = SMALL) -> Tensor:
    """The inverse of `cells_to_pixels`: images (N, 3, H, H) -> cells (N, C, 3, P, P)."""
    grid = pixels.reshape(pixels.shape[0], 3, world.grid, world.cell_pixels, world.grid, world.cell_pixels)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def scene_labels(scenes: Sequence[Scene], world: World = SMALL) -> Tensor:
    """Scenes as numbers (N, C) int64: the kind's number in each cell, `World.empty` where nothing stands."""
    labels = torch.full((len(scenes), world.cells), world.empty, dtype=torch.int64)
    for row, scene in enumerate(scenes):
        for cell, kind in scene.items():
            labels[row, cell] = world.kind_index[kind]
    return labels


def render_labels(labels: Tensor, world: World = SMALL) -> Tensor:
    """Images (N, 3, H, H) float32 in [0, 1] of cell numbers (N, C)."""
    return cells_to_pixels(cell_templates(world)[labels], world)


def render(scenes: Sequence[Scene], world: World = SMALL) -> Tensor:
    """Images (N, 3, H, H) float32 in [0, 1] of scenes."""
    return render_labels(scene_labels(scenes, world), world)
