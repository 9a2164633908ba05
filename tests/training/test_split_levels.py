"""A backward pass of one level of a few rollouts: the same objective, gradient and metrics for every variant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from src import algorithms
from src.config.schema import LevelShares
from src.training.update import microbatches, shown
from src.values import IMAGE, LEVELS, PLAN
from tests.memory_meter import AliveBytes
from tests.policies.tiny import exact_policy, tiny_policy
from tests.policies.toy import ToyPolicy
from tests.training.pieces import (
    LONGEST,
    assert_same_gradients,
    collected,
    update_settings,
    updated,
)
from tests.training.variant_pieces import gathered, stepped

SHARES = LevelShares(plan=0.3, image=0.7)
BONUS = {PLAN: 0.02, IMAGE: 0.01}


def variants() -> list[Any]:
    cases: list[Any] = [(name, {}, None) for name in algorithms.names()]
    cases += [
        ("grpo", {"level_shares": SHARES}, None),
        ("grpo", {}, BONUS),
        ("grpo", {"correction_cap": 1.5}, None),
    ]
    return [pytest.param(*case, id="-".join([case[0], *case[1], *(["bonus"] if case[2] else [])])) for case in cases]


@pytest.mark.parametrize(("name", "extra", "bonus"), variants())
def test_split_and_unsplit_agree_on_both_updates(name: str, extra: dict[str, Any], bonus: Any) -> None:
    policy = ToyPolicy(dtype=torch.float64)
    settings = replace(update_settings(), **extra)
    experience = gathered(policy, algorithm=name).experience
    for update in range(2):
        loss, whole, metrics, after = stepped(policy, experience, settings, algorithm=name, size=None, bonus=bonus)
        for size in (1, 5, None):
            found = stepped(policy, experience, settings, algorithm=name, size=size, bonus=bonus, split_levels=True)
            assert found[0] == pytest.approx(loss, rel=1e-10)
            assert_same_gradients(found[1], whole)
            assert shown(found[2]) == pytest.approx(shown(metrics), rel=1e-10, abs=1e-10)
            for level in LEVELS:
                old, mask = found[3].levels[level].old_logp, experience.levels[level].mask
                assert old is not None
                torch.testing.assert_close(old[mask], after.levels[level].old_logp[mask], atol=1e-10, rtol=0)  # type: ignore[index]
        if update == 0:
            with torch.no_grad():
                for parameter_name, parameter in policy.named_parameters():
                    parameter -= 0.5 * whole[parameter_name]
            experience = after


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["lora", "full"])
def test_a_janus_learns_the_same_from_split_levels(lora: Any) -> None:
    policy = exact_policy(lora=lora)
    experience = collected(policy).experience
    _, whole, _, _ = updated(policy, experience, update_settings())
    _, parts, _, _ = updated(policy, experience, update_settings(), 3, split_levels=True)
    assert_same_gradients(parts, whole)


def test_a_part_is_one_level_of_its_rollouts() -> None:
    experience = collected(ToyPolicy()).experience
    parts = list(microbatches(experience, 5, algorithms.load("grpo"), LONGEST, lambda x: x, 1, split_levels=True))
    assert [tuple(part.levels) for part in parts] == [(PLAN,), (IMAGE,)] * 3
    assert [len(part.levels[name]) for part in parts for name in part.levels] == [5, 5, 5, 5, 2, 2]
    assert len({part.normaliser for part in parts}) == 1


def test_columns_that_no_row_counts_are_left_out() -> None:
    """One long plan, and a dropped rollout: only the part with the long plan is as wide as the level."""
    policy = exact_policy()
    experience = collected(policy).experience
    level = experience.levels[PLAN]
    mask = torch.zeros_like(level.mask)
    mask[:, 0] = True
    mask[0] = True
    mask[-1] = False
    experience = replace(experience, levels={**experience.levels, PLAN: replace(level, mask=mask)})
    parts = list(microbatches(experience, 1, algorithms.load("grpo"), LONGEST, lambda x: x, 1))
    assert [part.levels[PLAN].ids.shape[1] for part in parts] == [level.ids.shape[1], *[1] * 11]
    assert [part.levels[IMAGE].ids.shape[1] for part in parts] == [9] * 12
    _, whole, _, after = updated(policy, experience, update_settings())
    _, narrow, _, same = updated(policy, experience, update_settings(), 1)
    assert_same_gradients(narrow, whole)
    for found in (after, same):
        assert found.levels[PLAN].old_logp.shape == level.ids.shape  # type: ignore[union-attr]
    torch.testing.assert_close(same.levels[PLAN].old_logp[mask], after.levels[PLAN].old_logp[mask], atol=1e-10, rtol=0)  # type: ignore[index]


def test_less_is_alive_at_a_time() -> None:
    """Split levels need about the larger of the two graphs instead of their sum; a fourth of the rows a fourth."""

    def peak(size: int | None, split_levels: bool) -> int:
        with AliveBytes() as alive:
            updated(policy, experience, update_settings(), size, split_levels=split_levels)
        return alive.peak

    policy = tiny_policy(layers=4)
    experience = collected(policy).experience
    whole, split, both = peak(None, False), peak(None, True), peak(3, True)
    assert split < 0.75 * whole
    assert both < 0.45 * split
