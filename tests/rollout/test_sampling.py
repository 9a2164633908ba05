"""Drawing under a level's settings; the distributions themselves are held in tests/kernels/test_sampling.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from kernels import guide
from src.rollout.sampling import draw
from src.values import Sampling

LAST_UNIFORM = 1.0 - 2.0**-53  # the largest float64 below 1


def exact(logits: Tensor, sampling: Sampling) -> Categorical:
    """The distribution over the whole vocabulary, written out in float64."""
    return Categorical(logits=logits.double() / sampling.temperature)


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=9),
    st.floats(0.2, 3.0),
    st.sampled_from([1.0, 1.5, 5.0]),
    st.none() | st.integers(1, 9),
    st.none() | st.floats(0.1, 1.0),
    st.floats(0, LAST_UNIFORM),
)
def test_log_probs_are_those_of_the_whole_vocabulary(
    values: list[float], tau: float, scale: float, top_k: int | None, top_p: float | None, uniform: float
) -> None:
    c, u = torch.tensor([values]), torch.tensor([values[::-1]])
    sampling = Sampling(tau, scale, top_k, top_p)
    logits = guide(c, u, scale)
    result = draw(logits, c if sampling.guided else None, torch.tensor([uniform], dtype=torch.float64), sampling)
    whole, plain = exact(logits, sampling), exact(c, sampling)
    assert result.ids.dtype == torch.int64
    assert result.logp.dtype == result.conditional_logp.dtype == torch.float32
    torch.testing.assert_close(result.logp.double(), whole.log_prob(result.ids), atol=1e-6, rtol=1e-6)
    # Summed in float32: logits of size |x| / tau carry errors of about 1e-7 of that.
    bound = 1e-6 * (1 + 60 / tau)
    torch.testing.assert_close(result.conditional_logp.double(), plain.log_prob(result.ids), atol=bound, rtol=1e-6)


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [
        (Sampling(), [0, 1, 2, 3]),
        (Sampling(top_k=2), [1, 3]),
        (Sampling(top_p=0.6), [1, 3]),
        (Sampling(0.25, top_p=0.6), [3]),  # 0.4^4 : 0.3^4 is 3 to 1
        (Sampling(guidance_scale=5.0, top_k=1), [0]),
    ],
    ids=str,
)
def test_what_is_drawn_from(sampling: Sampling, tokens: list[int]) -> None:
    c = torch.tensor([0.2, 0.3, 0.1, 0.4]).log().expand(200, -1)
    u = torch.tensor([0.05, 0.3, 0.25, 0.4]).log().expand(200, -1)  # token 0 gains most of guidance
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    drawn = draw(guide(c, u, sampling.guidance_scale), c if sampling.guided else None, grid, sampling)
    assert drawn.ids.unique().tolist() == tokens
