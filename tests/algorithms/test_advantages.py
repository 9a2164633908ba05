"""Advantages by hand, by numpy and by their invariances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.algorithms import (
    batch_normalised,
    group_centred,
    group_centred_batch_normalised,
    group_normalised,
    leave_one_out,
    share_without_signal,
    weigh_levels,
    without_signal,
)

BY_GROUP = [group_normalised, group_centred, leave_one_out]
ALL = [*BY_GROUP, batch_normalised, group_centred_batch_normalised]


def test_group_normalised_by_hand() -> None:
    """Group (1, 2, 3): mean 2, unbiased std 1. Group (0, 0, 3): mean 1, variance (1 + 1 + 4) / 2 = 3."""
    got = group_normalised(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 3.0], dtype=torch.float64), 3)
    first, second = 1 / 1.0001, 1 / (3**0.5 + 1e-4)
    want = torch.tensor([-first, 0.0, first, -second, -second, 2 * second], dtype=torch.float64)
    torch.testing.assert_close(got, want)


def test_epsilon_is_added_to_the_std() -> None:
    got = group_normalised(torch.tensor([0.0, 2.0], dtype=torch.float64), 2, epsilon=0.5)
    torch.testing.assert_close(got, torch.tensor([-1.0, 1.0], dtype=torch.float64) / (2**0.5 + 0.5))


def test_group_centred_by_hand() -> None:
    got = group_centred(torch.tensor([1.0, 2.0, 6.0, 5.0]), 2)
    torch.testing.assert_close(got, torch.tensor([-0.5, 0.5, 0.5, -0.5]))


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(2, 8), st.integers(0, 10**6))
def test_group_normalised_equals_numpy(prompts: int, group_size: int, seed: int) -> None:
    rewards = np.random.default_rng(seed).normal(size=(prompts, group_size))
    want = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(group_normalised(torch.from_numpy(rewards.ravel()), group_size), want.ravel())


def test_leave_one_out_by_hand() -> None:
    """1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2."""
    torch.testing.assert_close(leave_one_out(torch.tensor([1.0, 2.0, 6.0]), 3), torch.tensor([-3.0, -1.5, 4.5]))


def test_batch_normalised_by_hand() -> None:
    """Rewards 0, 2, 4, 6: mean 3, unbiased variance (9 + 1 + 1 + 9) / 3."""
    std = (20 / 3) ** 0.5 + 1e-4
    got = batch_normalised(torch.tensor([0, 2, 4, 6], dtype=torch.float64), 2)
    torch.testing.assert_close(got, torch.tensor([-3, -1, 1, 3], dtype=torch.float64) / std)


def test_group_centred_batch_normalised_by_hand() -> None:
    """Groups (0, 2) and (4, 10): deviations -1, 1, -3, 3 with mean 0 and unbiased variance 20 / 3."""
    std = (20 / 3) ** 0.5 + 1e-4
    got = group_centred_batch_normalised(torch.tensor([0, 2, 4, 10], dtype=torch.float64), 2)
    torch.testing.assert_close(got, torch.tensor([-1, 1, -3, 3], dtype=torch.float64) / std)


def test_levels_are_weighed() -> None:
    got = weigh_levels(torch.tensor([1.0, -2.0]), {"plan": 0.0, "image": 0.5})
    assert {name: value.tolist() for name, value in got.items()} == {"plan": [0, 0], "image": [0.5, -1.0]}
    for weights in ({"plan": 0.0, "image": 0.0}, {"plan": -1.0, "image": 1.0}):
        with pytest.raises(ValueError, match=r"algorithm\.level_weights"):
            weigh_levels(torch.ones(2), weights)


@pytest.mark.parametrize("function", BY_GROUP)
def test_a_group_is_compared_within_itself_only(function: Callable[..., Tensor]) -> None:
    alone = function(torch.tensor([1.0, 2.0, 5.0]), 3)
    beside = function(torch.tensor([70.0, 80.0, -90.0, 1.0, 2.0, 5.0]), 3)
    torch.testing.assert_close(beside[3:], alone, rtol=0, atol=0)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("reward", [0.1, 1e6 + 0.3, 0.0])
def test_equal_rewards_give_exactly_zero(function: Callable[..., Tensor], reward: float) -> None:
    """0.1 in float32: the mean of seven is not 0.1, and an epsilon of 1e-4 would make that visible."""
    assert function(torch.full((7,), reward), 7).eq(0).all()


def test_share_without_signal() -> None:
    total = torch.tensor([0.1, 0.1, 0.1, 0.2, 5.0, 5.0, 1.0, 0.0])
    assert without_signal(total, 2).tolist() == [True, False, True, False]
    assert share_without_signal(total, 2).item() == 0.5
    assert without_signal(total, 2, tolerance=0.5).tolist() == [True, True, True, False]


@pytest.mark.parametrize("function", [*ALL, share_without_signal])
def test_what_cannot_be_compared_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="group_size=1: expected at least 2"):
        function(torch.zeros(4), 1)
    with pytest.raises(ValueError, match=r"shape \(4,\), expected \(N,\) with N a multiple of 3"):
        function(torch.zeros(4), 3)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        function(torch.zeros(2, 2), 2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"not finite at rollouts \[2\]"):
            function(torch.tensor([0.0, 1.0, bad, 0.0]), 2)
