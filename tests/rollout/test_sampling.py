"""Inverse-CDF sampling against exact distributions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from src.rollout.sampling import draw
from src.values import Sampling

LAST_UNIFORM = 1.0 - 2.0**-53  # the largest float64 below 1


def exact(c: Tensor, u: Tensor | None, sampling: Sampling) -> Categorical:
    """The distribution of the docs, written out in float64."""
    mixed = c.double() if u is None else u.double() + sampling.guidance_scale * (c.double() - u.double())
    return Categorical(logits=mixed / sampling.temperature)


def evenly(n: int) -> Tensor:
    """A grid of n uniforms, each in the middle of its cell: inverse CDF then gives every count up to one."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5), Sampling(1.0, 5.0), Sampling(1.7, 1.5), Sampling(2.0, 0.3)]
)
def test_samples_follow_the_exact_distribution(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(1)
    c, u = torch.randn(2, 12, generator=generator)
    other = u if sampling.guided else None
    target = exact(c, other, sampling)
    n = 20_000
    uniform = torch.rand(n, dtype=torch.float64, generator=generator)
    result = draw(c.expand(n, -1), None if other is None else other.expand(n, -1), uniform, sampling)
    observed = np.bincount(result.ids.numpy(), minlength=12)
    expected = n * target.probs.numpy()
    likely = expected >= 5  # rare cells pooled, as the chi-square approximation asks
    chi = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    rest = expected[~likely].sum()
    if rest > 0:
        chi += (observed[~likely].sum() - rest) ** 2 / rest
    degrees = int(likely.sum()) - 1 + int(rest > 0)
    # Wilson-Hilferty: the 99.99 % point of chi-square.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi < limit
    # And without any luck: a grid of uniforms gives every token its share to within one cell.
    grid = draw(c.expand(n, -1), None if other is None else other.expand(n, -1), evenly(n), sampling)
    assert np.abs(np.bincount(grid.ids.numpy(), minlength=12) - expected).max() < 1.5


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=9),
    st.floats(0.2, 3.0),
    st.sampled_from([1.0, 1.5, 5.0]),
    st.floats(0, LAST_UNIFORM),
)
def test_log_probs_are_those_of_categorical(values: list[float], tau: float, scale: float, uniform: float) -> None:
    c = torch.tensor([values])
    u = torch.tensor([values[::-1]])
    sampling = Sampling(tau, scale)
    result = draw(c, u if sampling.guided else None, torch.tensor([uniform], dtype=torch.float64), sampling)
    mixed = exact(c, u if sampling.guided else None, sampling)
    conditional = exact(c, None, sampling)
    assert result.ids.dtype == torch.int64
    assert result.logp.dtype == result.conditional_logp.dtype == torch.float32
    # float32 logits of size |x| * scale / tau carry errors of about 1e-7 of that.
    size = 60 * scale / tau
    torch.testing.assert_close(result.logp.double(), mixed.log_prob(result.ids), atol=1e-6 * (1 + size), rtol=1e-6)
    torch.testing.assert_close(
        result.conditional_logp.double(), conditional.log_prob(result.ids), atol=1e-6 * (1 + size), rtol=1e-6
    )


def test_the_guided_distribution_by_hand() -> None:
    """u + w*(c - u): with c = (log 4, 0), u = (log 2, 0), w = 3 the odds are exp(log 2 + 3*log 2) = 16 to 1."""
    c, u = torch.tensor([[math.log(4), 0.0]]), torch.tensor([[math.log(2), 0.0]])
    below = draw(c, u, torch.tensor([16 / 17 - 1e-6], dtype=torch.float64), Sampling(1.0, 3.0))
    above = draw(c, u, torch.tensor([16 / 17 + 1e-6], dtype=torch.float64), Sampling(1.0, 3.0))
    assert (below.ids.item(), above.ids.item()) == (0, 1)
    assert below.logp.item() == pytest.approx(math.log(16 / 17), abs=1e-6)
    assert above.logp.item() == pytest.approx(math.log(1 / 17), abs=1e-6)
    assert below.conditional_logp.item() == pytest.approx(math.log(4 / 5), abs=1e-6)
    # Temperature 2 takes the root of the odds.
    warm = draw(c, u, torch.tensor([0.1], dtype=torch.float64), Sampling(2.0, 3.0))
    assert warm.logp.item() == pytest.approx(math.log(4 / 5), abs=1e-6)
    assert warm.conditional_logp.item() == pytest.approx(math.log(2 / 3), abs=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.5, LAST_UNIFORM])
@pytest.mark.parametrize("possible", [(0,), (2, 5), (7,), (0, 7), (1, 2, 3, 4, 5, 6)])
def test_a_token_of_probability_zero_is_never_drawn(possible: tuple[int, ...], uniform: float) -> None:
    logits = torch.full((1, 8), -1e4)
    logits[:, list(possible)] = torch.linspace(0, 1, len(possible))
    result = draw(logits, None, torch.tensor([uniform], dtype=torch.float64), Sampling())
    assert result.ids.item() in possible
    assert result.logp.item() > -10


@pytest.mark.parametrize("uniform", [0.0, LAST_UNIFORM])
def test_a_large_vocabulary_at_both_ends(uniform: float) -> None:
    """102,400 words with float32 probabilities: rounding of the sum must not reach an impossible token."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 102_400, generator=generator)
    logits[:, :100] = logits[:, -100:] = -1e4
    ids = draw(logits, None, torch.full((3,), uniform, dtype=torch.float64), Sampling()).ids
    assert bool(((ids >= 100) & (ids < 102_300)).all())


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    logits = torch.tensor([[size, -size, 0.0, size]])
    for uniform, token in ((0.1, 0), (0.9, 3)):
        result = draw(logits, None, torch.tensor([uniform], dtype=torch.float64), Sampling(0.7))
        assert result.ids.item() == token
        assert result.logp.item() == pytest.approx(math.log(0.5), abs=1e-5)
    guided = draw(logits, -logits, torch.tensor([0.1], dtype=torch.float64), Sampling(1.0, 5.0))
    assert guided.ids.item() == 0
    assert math.isfinite(guided.logp.item())


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(2)).bfloat16()
    result = draw(logits, None, evenly(4), Sampling())
    torch.testing.assert_close(
        result.logp.double(), exact(logits, None, Sampling()).log_prob(result.ids), atol=1e-5, rtol=0
    )
