"""One optimiser step against METHOD.md's loss, transcribed literally with transformers and PEFT alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src import algorithms
from src.config.schema import LevelSamplingConfig
from src.training.update import NOT_FINITE, microbatches, shown
from src.values import IMAGE, PLAN, Experience, TokenLevel
from tests.policies.oracle import guided_token_logps, level_logits
from tests.policies.tiny import exact_policy
from tests.policies.toy import ToyPolicy
from tests.training.pieces import (
    ADVANTAGES,
    BETA,
    LONGEST,
    ROLLOUT,
    assert_same_gradients,
    collected,
    gradients,
    update_settings,
    updated,
)

# The sampler keeps float32: a log-prob of this model is above -16, where half a last place is 5e-7.
KEPT = 1e-6


def transcribed_token_logps(policy: Any, name: str, level: TokenLevel, guided: bool) -> Tensor:
    """(N, T) with a graph into the conditional branch."""
    tau = level.sampling.temperature
    if guided and level.sampling.guided:
        branch = level.context.ids.clone()
        for row, mask in zip(branch, level.context.mask, strict=True):
            row[mask.nonzero().flatten()[1:-1]] = policy.tokenizer.pad_token_id
        unconditional = type(level.context)(branch, level.context.mask)
        return guided_token_logps(
            policy.janus, name, level.context, unconditional, level.ids, level.sampling.guidance_scale, tau
        )
    logits = level_logits(policy.janus, name, level.context, level.ids) / tau
    return logits.log_softmax(-1).gather(-1, level.ids[..., None]).squeeze(-1)


def transcribed_loss(
    policy: Any, experience: Experience, group: int, guided: bool, beta: float, old: dict[str, Tensor] | None = None
) -> Tensor:
    """METHOD.md, "Loss", line by line; `old` are the log-probs before the first update, None on-policy."""
    rewards = experience.report.total.view(-1, group)
    advantage = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    summed, tokens = torch.zeros((), dtype=torch.float64), 0
    for name, level in experience.levels.items():
        logp = transcribed_token_logps(policy, name, level, guided)
        with torch.no_grad(), policy.adapter.disable_adapter():
            ref = transcribed_token_logps(policy, name, level, guided)
        before = logp.detach() if old is None else old[name]
        ratio = torch.exp(logp - before)
        surrogate = ratio * advantage[:, None]
        if old is not None:
            surrogate = torch.minimum(surrogate, ratio.clamp(0.8, 1.2) * advantage[:, None])
        k3 = torch.exp(ref - logp) - (ref - logp) - 1
        summed = summed + ((surrogate - beta * k3) * level.mask).sum()
        tokens += int(level.mask.sum())
    return -summed / tokens


def transcribed_gradients(policy: Any, *arguments: Any, **keywords: Any) -> tuple[float, dict[str, Tensor]]:
    policy.zero_grad(set_to_none=True)
    loss = transcribed_loss(policy, *arguments, **keywords)
    loss.backward()
    return loss.item(), gradients(policy)


@pytest.mark.parametrize("beta", [BETA, 0.0])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "conditional"])
@pytest.mark.parametrize("size", [None, 5])
def test_the_gradient_is_that_of_the_published_loss(guided: bool, beta: float, size: int | None) -> None:
    policy = exact_policy()
    experience = collected(policy, guided=guided, reference=beta > 0).experience
    loss, ours, _, _ = updated(policy, experience, update_settings(guided=guided, beta=beta), size)
    expected, theirs = transcribed_gradients(policy, experience, 4, guided, beta)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(ours, theirs, ADVANTAGES)


def test_guided_and_conditional_gradients_differ() -> None:
    """Else the two settings would be held to the same thing."""
    policy = exact_policy()
    experience = collected(policy).experience
    _, guided = transcribed_gradients(policy, experience, 4, True, BETA)
    _, conditional = transcribed_gradients(policy, experience, 4, False, BETA)
    assert max(float((guided[n] - conditional[n]).abs().max()) for n in guided) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "full", "toy"])
@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "gspo"])
def test_microbatches_change_nothing(kind: str, variant: str) -> None:
    policy = (
        ToyPolicy(dtype=torch.float64) if kind == "toy" else exact_policy(lora=None if kind == "full" else {"r": 4})
    )
    experience = collected(policy, algorithm=variant).experience
    whole_loss, whole, metrics, after = updated(policy, experience, update_settings(), None, variant)
    for size in (1, 3, 5):
        loss, parts, same_metrics, same_after = updated(policy, experience, update_settings(), size, variant)
        assert loss == pytest.approx(whole_loss, rel=1e-10)
        assert_same_gradients(parts, whole)
        assert shown(same_metrics) == pytest.approx(shown(metrics), rel=1e-10, abs=1e-10)
        for name in (PLAN, IMAGE):
            old, same = after.levels[name].old_logp, same_after.levels[name].old_logp
            mask = experience.levels[name].mask
            torch.testing.assert_close(same[mask], old[mask], atol=1e-10, rtol=0)  # type: ignore[index]


@pytest.mark.parametrize("size", [None, 1, 4, 5, 12, 50])
def test_microbatches_are_the_rollouts_in_order_with_one_normaliser(size: int | None) -> None:
    experience = collected(ToyPolicy(dtype=torch.float64)).experience
    parts = list(microbatches(experience, size, algorithms.load("grpo"), LONGEST, lambda local: local, 1))
    assert all(len(part.levels[PLAN]) <= (size or 12) for part in parts)
    tokens = sum(int(level.mask.sum()) for level in experience.levels.values())
    assert {part.normaliser for part in parts} == {tokens}
    for name, level in experience.levels.items():
        cut = [part.levels[name] for part in parts]
        rows = [pair for part in cut for pair in zip(part.ids, part.mask, strict=True)]
        for (row, counted), ids, mask in zip(rows, level.ids, level.mask, strict=True):
            assert torch.equal(row[counted], ids[mask])
        assert torch.equal(torch.cat([part.advantages[name] for part in parts]), experience.advantages[name])


def test_the_normaliser_counts_all_ranks() -> None:
    """With another rank of the same size the sum of the world is twice the local one, and DDP's mean is undone."""
    experience = collected(ToyPolicy(dtype=torch.float64)).experience
    tokens = sum(int(level.mask.sum()) for level in experience.levels.values())
    (part,) = microbatches(experience, None, algorithms.load("grpo"), LONGEST, lambda local: 2 * local, 2)
    assert part.normaliser == 2 * tokens
    assert part.scale == 2.0


@pytest.mark.parametrize("kind", [{}, {"merge_rollout": False}, {"lora": None}], ids=["merged", "unmerged", "full"])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "conditional"])
def test_the_first_ratio_is_one(kind: dict[str, Any], guided: bool) -> None:
    """What the sampler kept is what training recomputes, but for the float32 it is kept in."""
    policy = exact_policy(**kind)
    experience = collected(policy, guided=guided).experience
    _, _, metrics, after = updated(policy, experience, update_settings(guided=guided), 5)
    for name, level in after.levels.items():
        kept = level.rollout_logp if guided or name == PLAN else level.conditional_logp
        ratio = (level.old_logp - kept).exp()[level.mask]  # type: ignore[operator]
        assert (ratio - 1).abs().max() < KEPT
        assert metrics[name]["mismatch_max"] < KEPT
        assert shown(metrics)[f"{name}/ratio"] == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "conditional"])
def test_truncated_rollouts_keep_the_log_probs_training_computes(guided: bool) -> None:
    """Drawn from a few tokens, scored over the whole vocabulary: no mismatch, and a first ratio of 1."""
    policy = exact_policy()
    truncated = replace(ROLLOUT, plan=replace(ROLLOUT.plan, top_k=2), image=replace(ROLLOUT.image, top_p=0.5))
    experience = collected(policy, guided=guided, rollout=truncated).experience
    _, _, metrics, after = updated(policy, experience, update_settings(guided=guided))
    for name, level in after.levels.items():
        assert not torch.equal(level.ids, collected(policy, guided=guided).experience.levels[name].ids)
        assert metrics[name]["mismatch_max"] < KEPT
        assert shown(metrics)[f"{name}/ratio"] == pytest.approx(1.0, abs=1e-10)


def test_a_guided_sampler_trained_conditionally_uses_the_conditional_log_probs() -> None:
    policy = exact_policy()
    experience = collected(policy, guided=False).experience
    level = updated(policy, experience, update_settings(guided=False))[3].levels[IMAGE]
    torch.testing.assert_close(level.old_logp, level.conditional_logp.double(), atol=KEPT, rtol=0)
    assert (level.old_logp - level.rollout_logp).abs().max() > 1e-2  # type: ignore[operator]


def test_a_second_update_clips_against_the_first_log_probs() -> None:
    """ratio = exp(logp - old_logp) with old_logp of before the first step; clipped as PPO does; by hand."""
    policy = exact_policy()
    rollout = replace(ROLLOUT, image=LevelSamplingConfig(), guidance_scale=1.0)
    experience = collected(policy, rollout=rollout).experience
    _, first, _, experience = updated(policy, experience, update_settings(), 5)
    old = {name: level.old_logp.clone() for name, level in experience.levels.items()}  # type: ignore[union-attr]
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name in first:
                parameter -= 0.3 * first[name]
    loss, second, metrics, after = updated(policy, experience, update_settings(), 5)
    expected, theirs = transcribed_gradients(policy, experience, 4, True, BETA, old=old)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(second, theirs, ADVANTAGES)
    for name, level in after.levels.items():
        assert torch.equal(level.old_logp, old[name]), "kept from before the first step"  # type: ignore[arg-type]
    # Clipping took part: some ratios left [0.8, 1.2] on the side their advantage pushes.
    figures = shown(metrics)
    assert figures["plan/clipped_low"] + figures["plan/clipped_high"] > 0
    # Counted by hand.
    for name, level in after.levels.items():
        with torch.no_grad():
            ratio = (transcribed_token_logps(policy, name, level, True) - old[name]).exp()
        advantage = experience.advantages[name][:, None].expand_as(ratio)
        high = ((ratio > 1.2) & (advantage > 0) & level.mask).sum().double() / level.mask.sum()
        assert figures[f"{name}/clipped_high"] == pytest.approx(high.item(), abs=1e-10)


def test_metrics_by_hand() -> None:
    policy = exact_policy()
    experience = collected(policy).experience
    _, _, metrics, after = updated(policy, experience, update_settings(), 5)
    figures = shown(metrics)
    for name, level in after.levels.items():
        logp = level.old_logp
        with torch.no_grad(), policy.adapter.disable_adapter():
            ref = transcribed_token_logps(policy, name, level, True)
        gap = (ref - logp)[level.mask].double()
        assert figures[f"{name}/kl"] == pytest.approx((gap.exp() - gap - 1).mean().item(), rel=1e-10)
        assert figures[f"{name}/tokens"] == level.mask.sum()
        assert figures[f"{name}/logp"] == pytest.approx(logp[level.mask].mean().item(), rel=1e-10)  # type: ignore[index]


@pytest.mark.parametrize("name", [PLAN, IMAGE])
def test_a_loss_that_is_not_finite_names_its_level(name: str) -> None:
    policy = exact_policy()
    experience = collected(policy).experience
    level = experience.levels[name]
    broken = replace(level, ref_logp=level.ref_logp.clone().fill_(float("nan")))  # type: ignore[union-attr]
    experience = replace(experience, levels={**experience.levels, name: broken})
    _, _, metrics, _ = updated(policy, experience, update_settings())
    assert [level for level, part in metrics.items() if NOT_FINITE in part] == [name]


def test_the_constant_normaliser_is_the_longest_possible() -> None:
    """Dr.GRPO (2503.20783) divides by a constant; the longest plan that happened in a batch is none."""
    experience = collected(ToyPolicy(dtype=torch.float64), algorithm="dr_grpo").experience
    variant, longest = algorithms.load("dr_grpo"), {PLAN: 60, IMAGE: 4}
    (part,) = microbatches(experience, None, variant, longest, lambda local: local, 1)
    assert part.normaliser == 12 * 60 + 12 * 4
