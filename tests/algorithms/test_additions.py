"""What can be added to any variant: KL in the reward, corrections, shares, entropy control, plan length, checks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.distributions import Categorical

from kernels import KL_NAMES
from src.algorithms import LevelCounts, check_settings, load, shared_normalisers
from src.algorithms.correction import truncated_importance
from src.algorithms.entropy import active_bonus, adapted_bonus
from src.algorithms.kl import needs_reference, needs_reference_logits, penalised_reward
from src.algorithms.plan_length import mask_unfinished, overlong_penalty, unfinished_penalty
from src.config.schema import AlgorithmConfig, LevelWeights


def test_kl_in_the_reward_by_hand() -> None:
    """1 - 0.1 * (2 + 3 + 0.5) and 2 - 0.1 * (1 - 4); what the mask leaves out does not count."""
    plan = (torch.tensor([[2.0, 3.0], [1.0, math.nan]]), torch.tensor([[True, True], [True, False]]))
    image = (torch.tensor([[0.5], [-4.0]], requires_grad=True), torch.ones(2, 1, dtype=torch.bool))
    got = penalised_reward(torch.tensor([1.0, 2.0]), [plan, image], beta=0.1)
    torch.testing.assert_close(got, torch.tensor([0.45, 2.3]))
    assert not got.requires_grad


def test_k1_in_the_reward_has_the_gradient_of_the_kl() -> None:
    """Summed over all tokens instead of sampled: d/dlogits sum_v p_v * sg(R_v) with R = -k1 is -grad KL."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(1, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    k1 = (logits.log_softmax(-1) - reference).detach().view(6, 1)
    reward = penalised_reward(torch.zeros(6, dtype=torch.float64), [(k1, torch.ones(6, 1, dtype=torch.bool))], beta=1.0)
    surrogate = (logits.softmax(-1)[0] * reward).sum()
    kl = torch.distributions.kl_divergence(Categorical(logits=logits), Categorical(logits=reference)).sum()
    torch.testing.assert_close(
        torch.autograd.grad(surrogate, logits, retain_graph=True)[0], -torch.autograd.grad(kl, logits)[0]
    )


def test_what_each_kl_asks_for() -> None:
    assert not needs_reference(0.0)
    assert needs_reference(0.01)
    assert [name for name in KL_NAMES if needs_reference_logits(name)] == ["exact"]


def test_truncated_importance_by_hand() -> None:
    old = torch.tensor([[-1.0, -1.0, -1.0, -1.0]], requires_grad=True)
    rollout = torch.tensor([[-1.0, -1.5, -3.0, -math.inf]])
    got = truncated_importance(old, rollout, torch.tensor([[True, True, True, False]]), cap=2.0)
    torch.testing.assert_close(got, torch.tensor([[1.0, math.exp(0.5), 2.0, 1.0]]))
    assert not got.requires_grad
    with pytest.raises(ValueError, match=r"correction_cap=1\.0"):
        truncated_importance(old, rollout, torch.ones(1, 4, dtype=torch.bool), cap=1.0)


def test_shares_make_each_level_a_mean_of_its_own() -> None:
    counts = {"plan": LevelCounts(50, 4, 100), "image": LevelCounts(576, 4, 144)}
    got = shared_normalisers("token", counts, {"plan": 1, "image": 3})
    assert got == {"plan": 200, "image": 768}  # plan: sum/200 = 1/4 * sum/50
    assert shared_normalisers("sequence", counts, {"plan": 1, "image": 1}) == {"plan": 8, "image": 8}
    assert shared_normalisers("constant", counts, {"plan": 0, "image": 2}) == {"plan": math.inf, "image": 576}
    masked = {**counts, "plan": LevelCounts(20, 2, 100)}  # two plans are left out: the constant is of all four
    assert shared_normalisers("constant", masked, {"plan": 1, "image": 1}) == {"plan": 800, "image": 1152}
    for shares in ({"plan": 0, "image": 0}, {"plan": -1, "image": 2}):
        with pytest.raises(ValueError, match="shares of the levels"):
            shared_normalisers("token", counts, shares)


def test_the_adaptive_bonus_moves_towards_its_target_within_bounds() -> None:
    step = {"target": 0.5, "step": 0.005, "maximum": 0.01}
    assert adapted_bonus(0.0, entropy=0.2, **step) == 0.005
    assert adapted_bonus(0.008, entropy=0.2, **step) == 0.01
    assert adapted_bonus(0.008, entropy=0.6, **step) == pytest.approx(0.003)
    assert adapted_bonus(0.003, entropy=0.6, **step) == 0.0
    assert active_bonus(0.005, entropy=0.5, target=0.5) == 0.005
    assert active_bonus(0.005, entropy=0.51, target=0.5) == 0.0
    with pytest.raises(ValueError, match="entropy_step=0"):
        adapted_bonus(0.0, entropy=0.2, target=0.5, step=0, maximum=0.01)


def test_unfinished_plans_cost_or_do_not_count() -> None:
    finished = torch.tensor([True, False])
    assert unfinished_penalty(finished, 0.5).tolist() == [0.0, -0.5]
    mask = torch.tensor([[True, False], [True, True]])
    assert mask_unfinished(mask, finished).tolist() == [[True, False], [False, False]]
    with pytest.raises(ValueError, match=r"unfinished_plan_penalty=-0\.5"):
        unfinished_penalty(finished, -0.5)


def test_overlong_penalty_by_hand() -> None:
    """At most 20 tokens, the last 4 at a growing price."""
    got = overlong_penalty(torch.tensor([1, 16, 17, 18, 20, 25]), max_tokens=20, margin=4)
    assert got.tolist() == [0, 0, -0.25, -0.5, -1, -1]
    for margin in (0, 21):
        with pytest.raises(ValueError, match=f"overlong_margin={margin}: expected 1 to rollout.max_plan_tokens=20"):
            overlong_penalty(torch.tensor([1]), max_tokens=20, margin=margin)


def checked(name: str, change: dict[str, Any]) -> None:
    """What a run checks of its algorithm's settings."""
    settings = AlgorithmConfig(**{"clip_high": 0.28, **change})
    settings.check()
    check_settings(load(name), settings, max_plan_tokens=20)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("grpo", {}),
        ("grpo", {"updates_per_rollout": 4, "level_weights": LevelWeights(image=0.0), "correction_cap": 2.0}),
        ("grpo", {"kl": "k1", "kl_in": "reward"}),
        ("grpo", {"kl": "k1", "beta": 0.0}),
        ("grpo", {"overlong_penalty": 0.5, "overlong_margin": 20}),
        ("cispo", {"clip_low": 1.0, "clip_high": 4.0}),
        ("rloo", {"clip_low": 0.0, "clip_high": 0.0}),
    ],
)
def test_sensible_settings_pass(name: str, change: dict[str, Any]) -> None:
    checked(name, change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rloo", {"updates_per_rollout": 2}, "name=rloo has no importance ratio.*updates_per_rollout=2.*set it to 1"),
        ("grpo", {"kl": "k1"}, "kl=k1 with algorithm.kl_in=loss.*k2, k3, exact.*kl_in=reward"),
        ("grpo", {"clip_low": 0.0, "clip_high": 0.0}, "one above 0"),
        ("grpo", {"level_weights": LevelWeights(0.0, 0.0)}, "level_weights.*one above 0"),
        ("grpo", {"overlong_penalty": 0.5, "overlong_margin": 21}, "overlong_margin=21: expected 1 to .*=20"),
        ("rloo", {"kl_in": "reward", "beta": 0.0}, r"kl_in=reward with algorithm.beta=0\.0.*set algorithm.beta above"),
        (
            "rloo",
            {"kl": "k1", "kl_in": "reward", "level_weights": LevelWeights(image=0.0)},
            r"level_weights.image=0\.0 with algorithm.kl_in=reward and algorithm.beta=0\.01.*set algorithm.kl_in=loss",
        ),
    ],
)
def test_senseless_settings_are_named_with_the_fix(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(name, change)
