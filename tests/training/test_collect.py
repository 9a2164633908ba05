"""From prompts to an experience: rewards, advantages, the reference, the penalty."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from src.rewards.base import RewardError
from src.rewards.ensemble import RewardEnsemble, eight_bit
from src.training.loop import experience_metrics
from src.training.options.length_penalty import penalise_unfinished
from src.training.token_statistics import score_level
from src.values import IMAGE, PLAN, RewardReport
from tests.policies.tiny import exact_policy, tiny_policy
from tests.policies.toy import ToyPolicy
from tests.training.experts import NaNAfter, Red
from tests.training.pieces import OPERATIONS, PROMPTS, collected
from tests.training.test_update import transcribed_token_logps


def test_rewards_and_advantages_by_hand() -> None:
    result = collected(tiny_policy())
    experience = result.experience
    records = [type("R", (), {"prompt": p}) for p in PROMPTS for _ in range(4)]
    scores, _ = Red().score(eight_bit(result.rollouts.pixels), records)
    torch.testing.assert_close(experience.report.total, scores)
    expected, bounds = [], []
    for start in range(0, 12, 4):
        group = scores[start : start + 4].double().tolist()
        mean = sum(group) / 4
        std = (sum((r - mean) ** 2 for r in group) / 3) ** 0.5  # unbiased
        expected += [(r - mean) / (std + 1e-4) for r in group]
        # A sum of 4 rewards rounds by 4 times 6e-8 of the largest, and so does a sum of 4 squares.
        bounds += 4 * [16 * 2.0**-24 * max(map(abs, group)) / (std + 1e-4)]
    found = experience.advantages[PLAN].double()
    assert ((found - torch.tensor(expected).double()).abs() <= torch.tensor(bounds).double()).all()


def test_levels_are_treated_alike() -> None:
    experience = collected(tiny_policy()).experience
    assert set(experience.levels) == set(experience.advantages) == {PLAN, IMAGE}
    assert torch.equal(experience.advantages[PLAN], experience.advantages[IMAGE])
    for level in experience.levels.values():
        assert level.ref_logp is not None
        assert level.old_logp is None


@pytest.mark.parametrize("guided", [True, False])
def test_reference_log_probs_are_those_of_the_model_without_its_adapter(guided: bool) -> None:
    policy = exact_policy()
    experience = collected(policy, guided=guided).experience
    for name, level in experience.levels.items():
        with torch.no_grad(), policy.adapter.disable_adapter():
            expected = transcribed_token_logps(policy, name, level, guided)
        torch.testing.assert_close(level.ref_logp[level.mask], expected[level.mask], atol=1e-10, rtol=0)  # type: ignore[index]
        assert (level.ref_logp - level.rollout_logp).abs().max() > 0.01  # type: ignore[operator]


def test_scoring_with_the_policys_own_weights_gives_the_kept_log_probs() -> None:
    policy = exact_policy()
    for name, level in collected(policy).experience.levels.items():
        again = score_level(OPERATIONS, policy.decoder(), name, level, guided=True).logp
        kept = level.rollout_logp  # rounded to float32
        torch.testing.assert_close(again[level.mask], kept[level.mask].to(again), atol=0, rtol=2.0**-23)
        assert not again.requires_grad


@pytest.mark.parametrize("make", [tiny_policy, ToyPolicy])
def test_without_kl_the_reference_is_not_asked(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make()
    asked: list[int] = []

    @contextmanager
    def reference() -> Any:
        asked.append(1)
        yield policy.decoder()

    monkeypatch.setattr(policy, "reference", reference)
    experience = collected(policy, reference=False).experience
    assert not asked
    assert all(level.ref_logp is None for level in experience.levels.values())
    collected(policy, reference=True)
    assert asked == [1]


def test_collecting_builds_no_graph_and_moves_no_weight() -> None:
    policy = tiny_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    experience = collected(policy).experience
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())
    for level in experience.levels.values():
        assert not level.ref_logp.requires_grad  # type: ignore[union-attr]
    assert not experience.report.total.requires_grad


def test_collecting_twice_gives_the_same_and_another_step_another() -> None:
    policy = ToyPolicy()
    first, again, other = collected(policy), collected(policy), collected(policy, step=1)
    for name in (PLAN, IMAGE):
        assert torch.equal(first.experience.levels[name].ids, again.experience.levels[name].ids)
    assert not torch.equal(first.experience.levels[IMAGE].ids, other.experience.levels[IMAGE].ids)


def test_a_plan_that_never_ends_costs_reward() -> None:
    policy = ToyPolicy()
    plain, punished = collected(policy), collected(policy, penalty=0.5)
    ended = plain.rollouts.ended
    assert ended.any()
    assert not ended.all()
    difference = plain.experience.report.total - punished.experience.report.total
    assert difference[ended].abs().max() == 0
    torch.testing.assert_close(difference[~ended], torch.full_like(difference[~ended], 0.5))
    assert torch.equal(plain.experience.report.scores, punished.experience.report.scores)
    totals = punished.experience.report.total.view(-1, 4).double()
    expected = (totals - totals.mean(1, keepdim=True)) / (totals.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(punished.experience.advantages[PLAN].double(), expected.flatten(), atol=1e-4, rtol=0)


def test_no_penalty_leaves_the_report_alone() -> None:
    report = RewardReport(("a",), torch.rand(2, 1), torch.ones(2, 1, dtype=torch.bool), torch.rand(2))
    assert torch.equal(penalise_unfinished(report, torch.tensor([True, False]), 0.0).total, report.total)


def test_a_score_that_is_not_finite_stops_and_names_its_expert() -> None:
    with pytest.raises(RewardError, match="'nan_after'"):
        collected(ToyPolicy(), expert=NaNAfter())


def test_experience_metrics_by_hand() -> None:
    result = collected(ToyPolicy())
    figures = experience_metrics(result)
    total = result.experience.report.total
    assert figures["reward"] == pytest.approx(total.mean().item(), abs=1e-6)
    assert figures["reward_std"] == pytest.approx(total.std(correction=0).item(), abs=1e-6)
    groups = total.view(-1, 4)
    silent = sum(1 for group in groups.tolist() if len(set(group)) == 1)
    assert figures["groups_without_signal"] == pytest.approx(silent / len(groups))
    lengths = [int(row.sum()) for row in result.experience.levels[PLAN].mask]
    assert figures["plan/length"] == pytest.approx(sum(lengths) / len(lengths))
    assert figures["plan/ended"] == pytest.approx(result.rollouts.ended.float().mean().item())
    assert figures["all_correct"] == pytest.approx(result.experience.report.details["all_correct"].mean().item())


def test_experts_are_no_part_of_the_checkpoint() -> None:
    from tests.training.lightning_pieces import toy_module

    module = toy_module(expert=Red())
    assert isinstance(module.rewards, RewardEnsemble)
    assert all(name.startswith("policy.") for name in module.state_dict())
