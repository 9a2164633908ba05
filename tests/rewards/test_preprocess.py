"""Preprocessing: held to Pillow's and to hand-made images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from src.rewards.vision.preprocess import fill_and_crop, fit_inside, normalise, pad_and_resize, resize

SIDES = st.integers(5, 40)


def smooth(height: int, width: int) -> Tensor:
    """An 8-bit picture without hard edges, as float pixels: far from black and white, so nothing is clipped."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 0.5 + 0.25
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).round() / 255


def by_pillow(pixels: Tensor, height: int, width: int) -> Tensor:
    image = Image.fromarray((pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 255


@given(SIDES, SIDES, SIDES, SIDES)
def test_resizing_is_pillows_up_to_its_rounding(height: int, width: int, to_height: int, to_width: int) -> None:
    """Pillow rounds to 8 bits after each of its two passes."""
    pixels = smooth(height, width)
    found = resize(pixels, to_height, to_width)
    assert (found - by_pillow(pixels, to_height, to_width)).abs().max() <= 1.5 / 255


@given(SIDES, SIDES, st.integers(4, 24))
def test_fill_and_crop_keeps_the_middle(height: int, width: int, side: int) -> None:
    pixels = smooth(height, width)
    shorter = min(height, width)
    whole = by_pillow(pixels, int(height * side / shorter), int(width * side / shorter))
    top, left = round((whole.shape[2] - side) / 2), round((whole.shape[3] - side) / 2)
    expected = whole[..., top : top + side, left : left + side]
    assert (fill_and_crop(pixels, side) - expected).abs().max() <= 1.5 / 255


def test_fit_inside_pads_black_around_the_middle() -> None:
    tall = fit_inside(torch.ones(1, 3, 8, 3), 4)  # 4 x 1.5, rounded to 2
    torch.testing.assert_close(tall[0, 0], torch.tensor([[0.0, 1.0, 1.0, 0.0]] * 4))
    wide = fit_inside(torch.ones(1, 3, 2, 4), 5)  # 2.5, rounded to 2 (to even), times 5; the odd row goes below
    assert [bool(row.any()) for row in wide[0, 0]] == [False, True, True, False, False]
    torch.testing.assert_close(wide[0, 0, 1:3], torch.ones(2, 5))


def test_fit_inside_resizes_by_the_longer_side() -> None:
    pixels = smooth(12, 20)
    found = fit_inside(pixels, 10)
    assert (found[..., 2:8, :] - by_pillow(pixels, 6, 10)).abs().max() <= 1.5 / 255
    assert not found[..., :2, :].any()
    assert not found[..., 8:, :].any()


def test_pad_and_resize_pads_before_it_resizes() -> None:
    colour = (0.25, 0.5, 0.75)
    found = pad_and_resize(torch.ones(2, 3, 2, 5), 5, colour)
    for channel, shade in enumerate(colour):
        assert found[1, channel, :, 0].tolist() == [shade, 1.0, 1.0, shade, shade]
    pixels = smooth(9, 9)
    torch.testing.assert_close(pad_and_resize(pixels, 6, colour), resize(pixels, 6, 6))


def test_overshoot_is_clipped_where_the_published_code_works_on_8_bits() -> None:
    edge = torch.zeros(1, 3, 12, 12)
    edge[..., 6:] = 1.0
    raw = resize(edge, 8, 8)
    assert raw.min() < -0.005
    assert raw.max() > 1.005
    assert torch.equal(fill_and_crop(edge, 8), raw.clamp(0, 1))
    assert torch.equal(pad_and_resize(edge, 8, (0.5, 0.5, 0.5)), raw.clamp(0, 1))
    assert torch.equal(fit_inside(edge, 8), raw)


def test_same_size_is_left_as_it_is() -> None:
    pixels = torch.rand(2, 3, 7, 7)
    for same in (fill_and_crop(pixels, 7), fit_inside(pixels, 7), pad_and_resize(pixels, 7, (0, 0, 0))):
        assert torch.equal(same, pixels)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (30, 7)])
def test_rows_do_not_see_each_other(shape: tuple[int, int]) -> None:
    pixels = torch.rand(5, 3, *shape)
    for transform in (fill_and_crop, fit_inside, lambda p, side: pad_and_resize(p, side, (0.1, 0.2, 0.3))):
        together = transform(pixels, 8)
        assert together.shape == (5, 3, 8, 8)
        for row in range(5):
            torch.testing.assert_close(transform(pixels[row : row + 1], 8)[0], together[row], rtol=0, atol=1e-7)


def test_normalise_by_channel() -> None:
    found = normalise(torch.full((1, 3, 2, 2), 0.5), (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))
    assert found[0, :, 0, 0].tolist() == [0.0, 0.5, 2.0]
