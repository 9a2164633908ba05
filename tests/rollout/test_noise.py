"""Keyed uniforms: a pure function of the key, different for every key, uniform, prefix-stable."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.rollout.noise import RolloutKey, group_keys, uniforms
from src.values import IMAGE, PLAN

KEY = RolloutKey(seed=3, stream="train", step=7, position=2, rollout=5)

keys = st.builds(
    RolloutKey,
    seed=st.integers(0, 2**31),
    stream=st.sampled_from(["train", "validation", "test"]),
    step=st.integers(0, 10**6),
    position=st.integers(0, 10**4),
    rollout=st.integers(0, 100),
)


def test_a_row_is_a_pure_function_of_its_key() -> None:
    first = uniforms([KEY], IMAGE, 576)
    torch.manual_seed(99)
    random.seed(99)
    torch.rand(5)
    assert torch.equal(uniforms([replace(KEY)], IMAGE, 576), first)


@given(st.lists(keys, min_size=1, max_size=6), st.randoms())
def test_neighbours_and_order_do_not_matter(chosen: list[RolloutKey], shuffle: random.Random) -> None:
    together = uniforms(chosen, PLAN, 9)
    order = list(range(len(chosen)))
    shuffle.shuffle(order)
    assert torch.equal(uniforms([chosen[i] for i in order], PLAN, 9), together[order])
    for row, key in enumerate(chosen):
        assert torch.equal(uniforms([key], PLAN, 9)[0], together[row])


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    uniforms([KEY], PLAN, 50)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("length", [1, 2, 7, 15, 16, 17, 31, 64, 255])
def test_a_longer_request_begins_with_the_shorter_one(length: int) -> None:
    whole = uniforms([KEY], PLAN, 1024)
    assert torch.equal(uniforms([KEY], PLAN, length), whole[:, :length])


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"stream": "validation"}, {"step": 8}, {"position": 3}, {"rollout": 6}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_key_counts(change: dict[str, object]) -> None:
    assert not (uniforms([KEY], PLAN, 64) == uniforms([replace(KEY, **change)], PLAN, 64)).any()  # type: ignore[arg-type]


def test_the_level_counts() -> None:
    assert not (uniforms([KEY], PLAN, 64) == uniforms([KEY], IMAGE, 64)).any()


def test_neighbouring_numbers_do_not_run_together() -> None:
    """(1, 12) and (11, 2) must not read the same once they are written one behind the other."""
    grid = [
        RolloutKey(seed, "train", step, position, rollout)
        for seed in (1, 11, 111)
        for step in (1, 11, 111)
        for position in (1, 11, 111)
        for rollout in (1, 11, 111)
    ]
    rows = uniforms(grid, PLAN, 2)
    assert torch.unique(rows, dim=0).shape[0] == len(grid)


def test_uniform_over_keys_and_within_a_row() -> None:
    """Kolmogorov-Smirnov distance below the 0.1 % critical value 1.95 / sqrt(n), down rows and across them."""

    def distance(sample: np.ndarray) -> float:
        ordered, n = np.sort(sample), len(sample)
        steps = np.arange(1, n + 1) / n
        return float(max((steps - ordered).max(), (ordered - (steps - 1 / n)).max()))

    grid = group_keys(0, "train", 0, range(500), 8)
    values = uniforms(grid, IMAGE, 8).numpy()
    assert values.dtype == np.float64
    assert values.min() >= 0.0
    assert values.max() < 1.0
    for column in range(8):
        assert distance(values[:, column]) < 1.95 / np.sqrt(len(grid))
    assert distance(uniforms([KEY], IMAGE, 4000).numpy()[0]) < 1.95 / np.sqrt(4000)
    # Rollouts of a group are independent: correlations of 500 pairs stay within 4.5 standard errors.
    groups = values[:, 0].reshape(500, 8)
    correlation = np.corrcoef(groups.T) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(500)


def test_group_keys_are_prompt_major() -> None:
    made = group_keys(5, "train", 2, (4, 9), 3)
    assert [(key.position, key.rollout) for key in made] == [(4, 0), (4, 1), (4, 2), (9, 0), (9, 1), (9, 2)]
    assert {(key.seed, key.stream, key.step) for key in made} == {(5, "train", 2)}
