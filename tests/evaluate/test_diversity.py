"""Diversity: cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from src.evaluate.diversity import embedding, mean_pairwise_distance, pixel_embedding, vendi_score


@pytest.mark.parametrize("n", [2, 5])
def test_the_same_picture_again_and_again(n: int) -> None:
    same = torch.rand(1, 12).expand(n, -1)
    assert vendi_score(same) == pytest.approx(1.0, abs=1e-9)
    assert mean_pairwise_distance(same) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("n", [2, 5])
def test_orthogonal_pictures(n: int) -> None:
    different = torch.eye(n) * torch.arange(1.0, n + 1)[:, None]
    assert vendi_score(different) == pytest.approx(n, rel=1e-12)
    assert mean_pairwise_distance(different) == 1.0


@given(st.floats(0.01, math.pi / 2))
def test_two_pictures_at_an_angle(angle: float) -> None:
    """K/2 = [[1, c], [c, 1]] / 2 has the eigenvalues (1 + c)/2 and (1 - c)/2."""
    c = math.cos(angle)
    pair = torch.tensor([[1.0, 0.0], [c, math.sin(angle)]], dtype=torch.float64)
    shares = [(1 + c) / 2, (1 - c) / 2]
    assert vendi_score(pair) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)
    assert mean_pairwise_distance(pair) == pytest.approx(1 - c, abs=1e-12)


def test_two_kinds_in_unequal_numbers() -> None:
    """Three of one and one of another: the entropy of (3/4, 1/4)."""
    four = torch.eye(2)[[0, 0, 0, 1]]
    assert vendi_score(four) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-9)
    assert mean_pairwise_distance(four) == pytest.approx(3 / 6)


def test_black_pictures_are_all_the_same_and_unlike_any_other() -> None:
    assert vendi_score(torch.zeros(3, 4)) == pytest.approx(1.0)
    assert vendi_score(torch.tensor([[0.0, 0.0], [1.0, 0.0]])) == pytest.approx(2.0)


def test_pixels_are_compared_as_they_are_or_averaged_down() -> None:
    small, large = torch.rand(2, 3, 24, 24), torch.rand(2, 3, 64, 64)
    assert torch.equal(pixel_embedding(small), small.flatten(1))
    blocks = large.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(pixel_embedding(large), blocks.flatten(1))


class Tower:
    def embed(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))


def test_which_space_is_chosen() -> None:
    experts = {"plain": object(), "tower": Tower()}
    assert embedding("auto", experts)[0] == "tower"
    assert embedding("auto", {"plain": object()}) == ("pixels", pixel_embedding)
    assert embedding("pixels", experts) == ("pixels", pixel_embedding)
    name, embed = embedding("tower", experts)
    assert (name, embed(torch.ones(1, 3, 2, 2)).tolist()) == ("tower", [[1.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match=r"embedding=plain.*pixels, auto, tower"):
        embedding("plain", experts)
