"""Bitmaps, renderer and image tokens against pixels written out by hand."""

from __future__ import annotations

import pytest
import torch

from src.shapes.scenes import cells_to_pixels, pixels_to_cells, render, scene_labels
from src.shapes.tokens import code_patches, labels_to_tokens, tokens_to_pixels
from src.shapes.vq import random_labels
from src.shapes.worlds import BACKGROUND, SMALL, ObjectKind

RED_SQUARE = ObjectKind("red", "square")


def test_a_red_square_in_the_top_right_is_six_by_six_red_pixels() -> None:
    picture = render([{2: RED_SQUARE}])[0]
    expected = torch.tensor(BACKGROUND)[:, None, None].repeat(1, 24, 24)
    expected[:, 1:7, 17:23] = torch.tensor(SMALL.colors["red"])[:, None, None]
    torch.testing.assert_close(picture, expected)


def test_labels_number_the_kinds_and_leave_the_rest_empty() -> None:
    labels = scene_labels([{4: RED_SQUARE}, {}])
    assert labels[0, 4] == SMALL.kinds.index(RED_SQUARE) == SMALL.kind_index[RED_SQUARE]
    assert (labels[0, [0, 1, 2, 3, 5, 6, 7, 8]] == SMALL.empty).all()
    assert (labels[1] == SMALL.empty).all()


def test_any_two_shapes_differ_in_at_least_twelve_pixels() -> None:
    flat = {shape: "".join(rows) for shape, rows in SMALL.bitmaps.items()}
    assert all(len(bitmap) == 64 for bitmap in flat.values())
    names = list(flat)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert sum(a != b for a, b in zip(flat[one], flat[other], strict=True)) >= 12


def test_cells_and_pixels_are_inverse() -> None:
    pixels = torch.rand(3, 3, 24, 24)
    cells = pixels_to_cells(pixels)
    assert cells.shape == (3, 9, 3, 8, 8)
    torch.testing.assert_close(cells[1, 5], pixels[1, :, 8:16, 16:24])
    torch.testing.assert_close(cells_to_pixels(cells), pixels)


@pytest.mark.parametrize(
    ("place", "cells"),
    [
        ("top-left", (0,)),
        ("center", (4,)),
        ("bottom-right", (8,)),
        ("middle row", (3, 4, 5)),
        ("left column", (0, 3, 6)),
    ],
)
def test_place_names(place: str, cells: tuple[int, ...]) -> None:
    assert SMALL.place_cells(place) == cells


def test_an_unknown_place_is_named() -> None:
    with pytest.raises(ValueError, match="'nowhere' is unknown"):
        SMALL.place_cells("nowhere")


def test_image_tokens_stand_for_the_drawing() -> None:
    labels = random_labels(50, torch.Generator().manual_seed(3))
    scenes = [{cell: SMALL.kinds[n] for cell, n in enumerate(row) if n != SMALL.empty} for row in labels.tolist()]
    tokens = labels_to_tokens(labels)
    assert tokens.shape == (50, 36)
    torch.testing.assert_close(tokens_to_pixels(tokens), render(scenes))


def test_image_tokens_run_row_by_row_over_the_whole_picture() -> None:
    tokens = labels_to_tokens(scene_labels([{0: RED_SQUARE}]))[0].view(6, 6)
    blank = tokens[5, 5]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(tokens != blank, expected)


def test_there_is_one_code_a_distinct_patch() -> None:
    codes = code_patches().flatten(1)
    assert codes.shape[0] == 4 * 12 + 1
    assert torch.pdist(codes).min() > 0.5
