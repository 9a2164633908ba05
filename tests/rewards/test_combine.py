"""Combinations by hand, and where each has no meaning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.rewards.combine import COMBINE, check_domain
from src.rewards.ensemble import RewardEnsemble
from tests.rewards.toy import Brightness, Glare, NamedChannel

NAN = float("nan")
# Two experts that count, a monitor; the second image's first expert does not apply, the third has the monitor only.
SCORES = torch.tensor([[0.5, 0.25, 9.0], [NAN, 0.25, 9.0], [NAN, NAN, 9.0]])
APPLICABLE = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
WEIGHTS = torch.tensor([2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "weights", "first", "second"),
    [
        ("sum", WEIGHTS, 1.25, 0.25),
        ("mean", WEIGHTS, 1.25 / 3, 0.25),
        ("min", torch.tensor([1.0, 1.0, 0.0]), 0.25, 0.25),
        ("product", WEIGHTS, 0.5**2 * 0.25, 0.25),
    ],
)
def test_by_hand(name: str, weights: torch.Tensor, first: float, second: float) -> None:
    total = COMBINE[name](SCORES, APPLICABLE, weights)
    assert total.tolist()[:2] == pytest.approx([first, second])
    assert total[2].isnan(), "a monitor alone gives no reward"


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.125, 4, width=32), min_size=5, max_size=5),
)
def test_the_product_is_the_exponential_of_the_weighted_logs(scores: list[float], weights: list[float]) -> None:
    weights = weights[: len(scores)]
    row, ones = torch.tensor([scores]), torch.ones(1, len(scores), dtype=torch.bool)
    expected = 0.0 if 0.0 in scores else math.exp(sum(w * math.log(s) for s, w in zip(scores, weights, strict=True)))
    assert COMBINE["product"](row, ones, torch.tensor(weights)).item() == pytest.approx(expected, rel=1e-4, abs=1e-30)


def test_a_score_below_zero_by_rounding_is_a_zero_of_the_product() -> None:
    both = torch.ones(1, 2, dtype=torch.bool)
    assert COMBINE["product"](torch.tensor([[-1e-7, 0.5]]), both, torch.tensor([0.5, 1.0])).item() == 0.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"combine": "product", "experts": [Brightness(), Glare()]},
            r"rewards\.combine=product: expert 'glare' has scores in \[-1\.0, -0\.0\].*>= 0",
        ),
        (
            {"combine": "product", "normalise": {"brightness": "group"}},
            r"rewards\.combine=product: rewards\.normalise=group makes the scores of expert 'brightness' negative",
        ),
        ({"combine": "min", "weights": {"brightness": 0.5}}, r"rewards\.weights\.brightness=0\.5: with .*combine=min"),
        (
            {"combine": "min", "normalise": {"named_channel": "group"}},
            r"rewards\.combine=min: expert 'brightness' is normalised by 'none', expert 'named_channel' by 'group'",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict, problem: str) -> None:
    experts = options.pop("experts", [Brightness(), NamedChannel()])
    with pytest.raises(ValueError, match=problem):
        RewardEnsemble(experts, **options)


def test_monitors_are_no_obstacle() -> None:
    RewardEnsemble([Brightness(), Glare()], {"glare": 0}, combine="product", normalise={"glare": "group"})
    RewardEnsemble([Brightness(), Glare()], {"glare": 0}, combine="min", normalise={"glare": "running"})
    check_domain("sum", {"any": 0.3}, {"any": (-math.inf, math.inf)}, {"any": "running"})
