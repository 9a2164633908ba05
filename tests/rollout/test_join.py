"""Rollouts sampled in several calls are, put together, what one call would have sampled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from src.rollout.join import join, select
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import RolloutKey
from src.rollout.rows import join_levels
from src.values import IMAGE, PLAN, Sampling, TokenLevel
from tests.policies.tiny import exact_policy
from tests.policies.toy import ToyPolicy

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .", "a green square")
SETTINGS = RolloutSettings(plan=Sampling(0.9), image=Sampling(1.1, 2.0), max_plan_tokens=7)

# Float64 policies; log-probs and pixels are kept in float32, and one last place may tip over.
KEPT = 2.0**-23


def rolled(policy: Any, rows: list[int]) -> Rollouts:
    keys = [RolloutKey(0, "train", 3, row, 0) for row in rows]
    return roll_out(policy, policy.decoder(), [PROMPTS[row] for row in rows], keys, SETTINGS)


def assert_same(got: TokenLevel, want: TokenLevel) -> None:
    """The same tokens in the same contexts, whatever the padding."""
    for row in range(len(want)):
        for mine, other in ((got.context, want.context), (got.unconditional, want.unconditional)):
            if other is None:
                assert mine is None
            else:
                assert mine is not None
                assert torch.equal(mine.ids[row][mine.mask[row]], other.ids[row][other.mask[row]])
        a, b = got.mask[row], want.mask[row]
        assert torch.equal(got.ids[row][a], want.ids[row][b])
        for name in ("rollout_logp", "conditional_logp", "unconditional_features"):
            if getattr(want, name) is not None:
                torch.testing.assert_close(
                    getattr(got, name)[row][a], getattr(want, name)[row][b], atol=1e-10, rtol=KEPT
                )


@pytest.mark.parametrize("make", [exact_policy, partial(ToyPolicy, dtype=torch.float64)])
def test_joined_parts_are_one_call(make: Any) -> None:
    policy = make()
    want = rolled(policy, [0, 1, 2, 3])
    got = join([rolled(policy, [0, 2]), rolled(policy, [1]), rolled(policy, [3])])
    lengths = {part.levels[PLAN].context.ids.shape[1] for part in (rolled(policy, [0, 2]), rolled(policy, [1]))}
    assert len(lengths) == 2, "contexts of one width would not test the padding"
    got = select(got, torch.tensor([0, 2, 1, 3]))
    assert got.plans == want.plans
    torch.testing.assert_close(got.pixels, want.pixels, atol=KEPT, rtol=0)
    assert torch.equal(got.ended, want.ended)
    for name in (PLAN, IMAGE):
        assert_same(got.levels[name], want.levels[name])


def test_a_joined_level_is_scored_as_its_parts() -> None:
    """The padding must not reach the training pass either."""
    policy = exact_policy()
    parts = [rolled(policy, [1]), rolled(policy, [0])]
    for name in (PLAN, IMAGE):
        joined = join_levels([part.levels[name] for part in parts])
        whole = policy({name: joined})[name].features
        for row, part in enumerate(parts):
            alone = policy({name: part.levels[name]})[name].features[0]
            keep = part.levels[name].mask[0]
            torch.testing.assert_close(
                whole[row, : len(keep)][keep], alone[keep], atol=1e-10, rtol=0, msg=f"{name} {row}"
            )


def test_levels_that_do_not_belong_together_are_refused() -> None:
    level = rolled(ToyPolicy(), [0, 1]).levels[PLAN]
    with pytest.raises(ValueError, match="different settings"):
        join_levels([level, replace(level, sampling=Sampling(0.5))])
    with pytest.raises(ValueError, match="scored already"):
        join_levels([level, replace(level, ref_logp=level.rollout_logp)])
