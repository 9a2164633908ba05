"""What variants add to a step, each against a literal transcription with transformers alone or by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from src import algorithms
from src.config.schema import AlgorithmConfig, LevelBonus, LevelShares, LevelTargets, LevelWeights
from src.training.entropy_control import EntropyControl
from src.training.loop import experience_metrics
from src.training.ranks import Ranks
from src.training.update import microbatches, shown
from src.values import IMAGE, PLAN, TokenLevel
from tests.policies.oracle import level_logits
from tests.policies.tiny import exact_policy
from tests.policies.toy import ToyPolicy
from tests.training.pieces import (
    BETA,
    LONGEST,
    assert_same_gradients,
    gradients,
    update_settings,
)
from tests.training.test_update import KEPT, transcribed_token_logps
from tests.training.variant_pieces import GROUP, PROMPTS, batch_of, gathered, stepped


def guided_logits(policy: Any, janus: Any, name: str, level: TokenLevel, guided: bool) -> Tensor:
    """(N, T, V) under temperature and guidance; only the conditional branch has a graph."""
    c = level_logits(janus, name, level.context, level.ids)
    if guided and level.sampling.guided:
        with torch.no_grad():
            u = level_logits(janus, name, policy.unconditional(level.context), level.ids)
        c = u + level.sampling.guidance_scale * (c - u)
    return c / level.sampling.temperature


def reference_logits(policy: Any, start: Any, name: str, level: TokenLevel, guided: bool) -> Tensor:
    with torch.no_grad():
        if policy.adapter is None:
            return guided_logits(policy, start, name, level, guided)
        with policy.adapter.disable_adapter():
            return guided_logits(policy, policy.janus, name, level, guided)


def policy_and_start(kind: str) -> tuple[Any, Any]:
    """A policy that has moved away from its reference, and (full fine-tuning) the model it started from."""
    if kind == "lora":
        return exact_policy(), None
    policy = exact_policy(lora=None)
    start = copy.deepcopy(policy.janus)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return policy, start


# KL


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "conditional"])
def test_the_exact_kl_in_the_loss(kind: str, guided: bool) -> None:
    """Value and gradient of the sum over the vocabulary; under full fine-tuning the reference has its own lm_head."""
    policy, start = policy_and_start(kind)
    experience = gathered(policy, guided=guided, kl="exact").experience
    assert all(level.ref_logp is None for level in experience.levels.values())
    settings = replace(update_settings(guided=guided), kl="exact")
    loss, ours, metrics, _ = stepped(policy, experience, settings)

    policy.zero_grad(set_to_none=True)
    tokens = sum(int(level.mask.sum()) for level in experience.levels.values())
    want = torch.zeros((), dtype=torch.float64)
    for name, level in experience.levels.items():
        logits = guided_logits(policy, policy.janus, name, level, guided)
        logp = logits.log_softmax(-1).gather(-1, level.ids[..., None]).squeeze(-1)
        reference = reference_logits(policy, start, name, level, guided)
        kl = kl_divergence(Categorical(logits=logits), Categorical(logits=reference))
        ratio = (logp - logp.detach()).exp()
        objective = ratio * experience.advantages[name][:, None] - BETA * kl
        want = want - (objective * level.mask).sum() / tokens
        assert shown(metrics)[f"{name}/kl"] == pytest.approx(kl[level.mask].mean().item(), rel=1e-10)
        assert kl[level.mask].mean() > 0.01
    want.backward()
    assert loss == pytest.approx(want.item(), rel=1e-10)
    assert_same_gradients(ours, gradients(policy))


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "conditional"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "exact"])
def test_the_kl_in_the_reward(kl: str, guided: bool) -> None:
    """Reward minus beta times the KL summed over both levels' tokens, before groups are compared."""
    policy = exact_policy()
    result = gathered(policy, guided=guided, kl=kl, beta=0.02, kl_in="reward")
    taken = torch.zeros(len(result.experience), dtype=torch.float64)
    for name, level in result.rollouts.levels.items():
        with torch.no_grad():
            logits = guided_logits(policy, policy.janus, name, level, guided)
            reference = reference_logits(policy, None, name, level, guided)
            logp, ref = (x.log_softmax(-1).gather(-1, level.ids[..., None]).squeeze(-1) for x in (logits, reference))
            values = {
                "k1": logp - ref,
                "k2": (logp - ref) ** 2 / 2,
                "k3": (ref - logp).exp() - (ref - logp) - 1,
                "exact": kl_divergence(Categorical(logits=logits), Categorical(logits=reference)),
            }
            taken += 0.02 * (values[kl] * level.mask).sum(1)
        torch.testing.assert_close(
            result.experience.levels[name].ref_logp[level.mask],  # type: ignore[index]
            ref[level.mask],
            atol=1e-10,
            rtol=0,
        )
    assert taken.abs().max() > 0.01
    rewards = (result.experience.report.total.double() - taken).view(-1, GROUP)
    want = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    for advantages in result.experience.advantages.values():
        # Rewards and the sampler's log-probs are float32: what they are off by is divided by the group's spread.
        tokens = sum(level.ids.shape[1] for level in result.rollouts.levels.values())
        off = (2.0**-22 * rewards.abs().amax(1, keepdim=True) + 0.02 * tokens * KEPT) / rewards.std(1, keepdim=True)
        assert off.max() < 1e-3
        assert ((advantages.double().view_as(want) - want).abs() <= off * (1 + want.abs())).all()
    assert experience_metrics(result)["kl_penalty"] == pytest.approx(taken.mean().item(), rel=1e-6)
    plain = gathered(policy, guided=guided).experience
    assert torch.equal(result.experience.report.total, plain.report.total), "the logged reward is the experts'"


# Levels


def test_weight_0_trains_the_other_level_with_the_kl_on_both() -> None:
    policy = exact_policy()
    experience = gathered(policy, level_weights=LevelWeights(image=0.0)).experience
    _, ours, metrics, _ = stepped(policy, experience, update_settings())
    advantages = gathered(policy).experience.advantages[PLAN]

    policy.zero_grad(set_to_none=True)
    loss, tokens = torch.zeros((), dtype=torch.float64), 0
    for name, level in experience.levels.items():
        logp = transcribed_token_logps(policy, name, level, True)
        with torch.no_grad(), policy.adapter.disable_adapter():
            ref = transcribed_token_logps(policy, name, level, True)
        k3 = (ref - logp).exp() - (ref - logp) - 1
        surrogate = (logp - logp.detach()).exp() * advantages[:, None] if name == PLAN else torch.zeros_like(logp)
        loss = loss - ((surrogate - BETA * k3) * level.mask).sum()
        tokens += int(level.mask.sum())
    (loss / tokens).backward()
    assert_same_gradients(ours, gradients(policy))
    assert shown(metrics)["image/kl"] > 0


def test_level_weights_multiply_each_level_s_advantages() -> None:
    policy = exact_policy()
    plain = gathered(policy).experience.advantages
    weighed = gathered(policy, level_weights=LevelWeights(3.0, 0.5)).experience.advantages
    assert torch.equal(weighed[PLAN], 3 * plain[PLAN])
    assert torch.equal(weighed[IMAGE], 0.5 * plain[IMAGE])


@pytest.mark.parametrize(("algorithm", "size"), [("grpo", 5), ("grpo", None), ("gspo", 5), ("dr_grpo", 5)])
def test_shares_are_the_levels_weights_in_the_loss(algorithm: str, size: int | None) -> None:
    """1/4 of the plan level's own mean and 3/4 of the image level's, whatever their lengths."""
    policy = exact_policy()
    experience = gathered(policy, algorithm=algorithm).experience
    settings = replace(update_settings(), level_shares=LevelShares(1.0, 3.0))
    _, ours, _, _ = stepped(policy, experience, settings, algorithm=algorithm, size=size)
    parts = []
    for name, level in experience.levels.items():
        alone = replace(experience, levels={name: level})
        parts.append(stepped(policy, alone, update_settings(), algorithm=algorithm, size=None)[1])
    want = {key: 0.25 * parts[0][key] + 0.75 * parts[1][key] for key in ours}
    assert_same_gradients(ours, want)


# Whole-batch advantages over ranks


def as_two_ranks(prompts: Sequence[str], run: Callable[[Any, Ranks], Any]) -> tuple[Any, list[Any]]:
    """`run` on all prompts at once, and on two halves that hear each other's numbers."""
    whole = run(batch_of(prompts, step=5), Ranks())
    half = len(prompts) // 2
    halves = [
        batch_of(prompts[:half], step=5, positions=range(half)),
        batch_of(prompts[half:], step=5, positions=range(half, len(prompts))),
    ]
    said: list[list[Tensor]] = [[], []]

    def listening(rank: int) -> Ranks:
        def gather(mine: Tensor) -> list[Tensor]:
            said[rank].append(mine)
            return [mine, mine]

        return Ranks(rank, gather)

    def answering(rank: int) -> Ranks:
        turns = iter(zip(*said, strict=True))
        return Ranks(rank, lambda mine: list(next(turns)))

    for rank, batch in enumerate(halves):
        run(batch, listening(rank))
    return whole, [run(batch, answering(rank)) for rank, batch in enumerate(halves)]


@pytest.mark.parametrize("algorithm", ["reinforce_pp", "reinforce_pp_baseline", "grpo"])
def test_two_ranks_compare_rewards_as_one_does(algorithm: str) -> None:
    def run(batch: Any, ranks: Ranks) -> Any:
        return gathered(ToyPolicy(dtype=torch.float64), batch, algorithm=algorithm, ranks=ranks)

    whole, parts = as_two_ranks(PROMPTS, run)
    total = whole.experience.report.total.double()
    centred = total if algorithm == "reinforce_pp" else total - total.view(-1, GROUP).mean(1).repeat_interleave(GROUP)
    if algorithm != "grpo":
        want = (centred - centred.mean()) / (centred.std() + 1e-4)
        torch.testing.assert_close(whole.experience.advantages[PLAN].double(), want, atol=1e-6, rtol=1e-6)
    for name in (PLAN, IMAGE):
        together = torch.cat([part.experience.advantages[name] for part in parts])
        torch.testing.assert_close(together, whole.experience.advantages[name], atol=1e-6, rtol=1e-6)


# The correction between sampler and training


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "gspo"])
def test_the_correction_weighs_tokens_by_how_far_the_sampler_was_off(algorithm: str) -> None:
    """A sampler that said log-probs off by a known amount: each token's gradient times min(exp(offset), cap)."""
    policy = exact_policy()
    experience = gathered(policy, reference=False, algorithm=algorithm).experience
    offset = {name: torch.randn(level.ids.shape).mul(0.8) for name, level in experience.levels.items()}
    levels = {
        name: replace(level, rollout_logp=level.rollout_logp - offset[name])
        for name, level in experience.levels.items()
    }
    experience = replace(experience, levels=levels)
    settings = replace(update_settings(beta=0.0), correction_cap=2.0)
    _, ours, metrics, after = stepped(policy, experience, settings, algorithm=algorithm)
    policy.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64)
    counts = {
        "grpo": sum(int(level.mask.sum()) for level in levels.values()),
        "rloo": len(experience) * sum(LONGEST.values()),
        "gspo": 2 * len(experience),
    }
    for name, level in levels.items():
        logp = transcribed_token_logps(policy, name, level, True)
        weight = offset[name].exp().clamp(max=2.0)
        lengths = level.mask.sum(1, keepdim=True) if algorithm == "gspo" else 1
        if algorithm == "gspo":  # one ratio a sequence: its gradient spreads over the tokens, weighed by their mean
            weight = ((weight * level.mask).sum(1, keepdim=True) / lengths).expand_as(weight)
        advantages = experience.advantages[name][:, None]
        loss = loss - (weight * advantages * logp * level.mask / lengths).sum() / counts[algorithm]
        want = offset[name].exp().clamp(max=2.0)[level.mask].mean().item()
        assert shown(metrics)[f"{name}/correction"] == pytest.approx(want, rel=KEPT)
        assert shown(metrics)[f"{name}/mismatch"] == pytest.approx(
            offset[name][level.mask].abs().mean().item(), rel=KEPT
        )
    loss.backward()
    assert_same_gradients(ours, gradients(policy), KEPT)
    # Later updates weigh by the same: the sampler's error belongs to the weights that sampled.
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name in ours:
                parameter -= 0.1 * ours[name]
    _, _, later, _ = stepped(policy, after, settings, algorithm=algorithm)
    for name in levels:
        assert shown(later)[f"{name}/correction"] == pytest.approx(shown(metrics)[f"{name}/correction"], rel=1e-10)


def test_the_mismatch_is_logged_without_any_correction() -> None:
    policy = exact_policy()
    _, _, metrics, _ = stepped(policy, gathered(policy).experience, update_settings())
    for name in (PLAN, IMAGE):
        assert {"mismatch", "mismatch_max", "mismatch_kl"} <= metrics[name].keys()
        assert "correction" not in metrics[name]


# Entropy


def test_the_entropy_bonus_has_the_gradient_of_the_entropy() -> None:
    policy = exact_policy()
    experience = gathered(policy, reference=False).experience
    settings = update_settings(beta=0.0)
    _, without, _, _ = stepped(policy, experience, settings)
    _, ours, _, _ = stepped(policy, experience, settings, bonus={"plan": 0.3, "image": 0.05})
    policy.zero_grad(set_to_none=True)
    tokens = sum(int(level.mask.sum()) for level in experience.levels.values())
    loss = torch.zeros((), dtype=torch.float64)
    for name, level in experience.levels.items():
        entropy = Categorical(logits=guided_logits(policy, policy.janus, name, level, True)).entropy()
        loss = loss - {"plan": 0.3, "image": 0.05}[name] * (entropy * level.mask).sum() / tokens
    loss.backward()
    bonus = gradients(policy)
    assert_same_gradients(ours, {name: without[name] + bonus[name] for name in without})


def test_a_fixed_bonus_stays_and_an_adaptive_one_follows_the_entropy() -> None:
    control = EntropyControl(
        AlgorithmConfig(
            entropy_bonus=LevelBonus(0.1, 0.02),
            entropy_target=LevelTargets(image=0.5),
            entropy_step=0.01,
            entropy_maximum=0.035,
        )
    )
    assert control.used
    seen = []
    for entropy in (0.4, 0.3, 0.2, 0.9, 0.4, math.nan):
        seen.append(control.coefficients())
        control.observe({"plan": 0.0, "image": entropy})
    assert [row["plan"] for row in seen] == [0.1] * 6
    # Up below the target, bounded, off while the entropy is above, down a step for it, and back.
    assert [row["image"] for row in seen] == pytest.approx([0.02, 0.03, 0.035, 0.035, 0.0, 0.035])
    assert control.coefficients()["image"] == pytest.approx(0.035), "a step without tokens says nothing"
    other = EntropyControl(control.settings)
    other.load_state_dict(control.state_dict())
    assert other.coefficients() == control.coefficients()
    assert not EntropyControl(AlgorithmConfig()).used


# Plan length


def test_the_overlong_penalty_by_hand() -> None:
    """At most 7 tokens, the last 4 of them at a growing price of up to 0.6."""
    policy = ToyPolicy(dtype=torch.float64)
    plain = gathered(policy)
    result = gathered(policy, overlong_penalty=0.6, overlong_margin=4)
    lengths = plain.rollouts.levels[PLAN].mask.sum(1)
    assert len(set(lengths.tolist())) > 2
    price = {length: 0.6 * min(max(length - 3, 0) / 4, 1) for length in range(8)}
    want = plain.experience.report.total - torch.tensor([price[int(length)] for length in lengths])
    torch.testing.assert_close(result.experience.report.total, want)


def test_penalties_may_spare_the_image() -> None:
    policy = ToyPolicy(dtype=torch.float64)
    plain, both = gathered(policy), gathered(policy, unfinished_plan_penalty=0.5)
    spared = gathered(policy, unfinished_plan_penalty=0.5, penalties_on="plan")
    assert not torch.equal(plain.experience.advantages[IMAGE], both.experience.advantages[IMAGE])
    assert torch.equal(spared.experience.advantages[PLAN], both.experience.advantages[PLAN])
    assert torch.equal(spared.experience.advantages[IMAGE], plain.experience.advantages[IMAGE])


def test_masked_plans_are_not_learned_from_but_their_images_are() -> None:
    policy = ToyPolicy(dtype=torch.float64)
    result = gathered(policy, mask_unfinished=True)
    ended = result.rollouts.ended
    assert ended.any()
    assert not ended.all()
    plan, image = result.experience.levels[PLAN], result.experience.levels[IMAGE]
    assert torch.equal(plan.mask, result.rollouts.levels[PLAN].mask & ended[:, None])
    assert torch.equal(image.mask, result.rollouts.levels[IMAGE].mask)
    _, _, metrics, _ = stepped(policy, result.experience, update_settings())
    assert metrics[PLAN]["tokens"] == result.rollouts.levels[PLAN].mask[ended].sum()


def test_masked_plans_leave_the_constant_as_it_is() -> None:
    """Dr.GRPO's Z is all rollouts times the longest possible lengths, whoever's plan was left out."""
    result = gathered(ToyPolicy(dtype=torch.float64), mask_unfinished=True, algorithm="dr_grpo")
    assert not result.rollouts.ended.all()
    variant, rollouts = algorithms.load("dr_grpo"), len(result.experience)
    parts = list(microbatches(result.experience, 5, variant, LONGEST, lambda local: local, 1))
    assert {part.normaliser for part in parts} == {float(rollouts * (LONGEST[PLAN] + LONGEST[IMAGE]))}


def test_no_plan_at_all_to_learn_from_leaves_the_images() -> None:
    """Every plan is cut: all are masked, and nothing turns NaN."""
    policy = exact_policy()
    result = gathered(policy, mask_unfinished=True)
    assert not result.rollouts.ended.any()
    settings = replace(update_settings(), level_shares=LevelShares(1.0, 1.0))
    for chosen in (update_settings(), settings):
        loss, ours, metrics, _ = stepped(policy, result.experience, chosen)
        assert math.isfinite(loss)
        assert all(gradient.isfinite().all() for gradient in ours.values())
        assert metrics[PLAN]["tokens"] == 0
