"""The shared loss: by hand, against a literal transcription of the published objective, and its invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import token_statistics
from src.algorithms import LossInputs, count, group_normalised, load, means, merge, normaliser
from src.algorithms.losses import LevelCounts, assemble, clipped_surrogate

GRPO = load("grpo")


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clipped_loss_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.1 and clip 0.2: only a move that already went too far in A's direction is cut.

    A = 2: min(3, 2.4) = 2.4; min(1, 1.6) = 1; 2.2. A = -1: min(-1.5, -1.2) = -1.5; min(-0.5, -0.8) = -0.8; -1.1.
    Sum: 2.4 + 1 + 2.2 - 1.5 - 0.8 - 1.1 = 2.2, over 6 tokens.
    """
    ratio = f64([1.5, 0.5, 1.1], [1.5, 0.5, 1.1])
    inputs = LossInputs(
        ratio.log() - 3, f64(2, -1), torch.ones(2, 3, dtype=torch.bool), old_logp=torch.full((2, 3), -3.0).double()
    )
    out = GRPO.loss(inputs, normaliser=6, clip_low=0.2, clip_high=0.2)
    assert out.loss.item() == pytest.approx(-2.2 / 6)
    logged = means(out.metrics)
    assert logged["surrogate"] == pytest.approx(2.2 / 6)
    assert logged["ratio"] == pytest.approx((1.5 + 0.5 + 1.1) / 3)
    assert logged["ratio_deviation_max"] == pytest.approx(0.5)
    assert logged["clipped_high"] == pytest.approx(1 / 6)  # ratio 1.5 with A = 2
    assert logged["clipped_low"] == pytest.approx(1 / 6)  # ratio 0.5 with A = -1
    assert logged["drift"] == pytest.approx((math.log(1.5) + math.log(2) + math.log(1.1)) / 3)
    assert logged["tokens"] == 6


def test_kl_entropy_and_mask_by_hand() -> None:
    """Two tokens count: -(1/2) * ((1*3 - 0.1*0.5 + 0.01*2) + (1*3 - 0.1*0.25 + 0.01*1)) = -2.9775."""
    inputs = LossInputs(
        f64([-1, -2, -3]),
        f64(3),
        torch.tensor([[True, True, False]]),
        kl=f64([0.5, 0.25, 1e9]),
        entropy=f64([2, 1, math.nan]),
    )
    out = GRPO.loss(inputs, normaliser=2, beta=0.1, entropy_bonus=0.01)
    assert out.loss.item() == pytest.approx(-2.9775)
    logged = means(out.metrics)
    assert (logged["kl"], logged["entropy"], logged["logp"], logged["tokens"]) == (0.375, 1.5, -1.5, 2)


def test_on_policy_gradient_is_minus_the_advantage_per_token() -> None:
    for old_logp in (None, f64([-1, -2])):
        logp = f64([-1, -2]).requires_grad_()
        inputs = LossInputs(logp, f64(0.7), torch.ones(1, 2, dtype=torch.bool), old_logp)
        GRPO.loss(inputs, normaliser=4).loss.backward()
        torch.testing.assert_close(logp.grad, f64([-0.7 / 4, -0.7 / 4]))


def test_clipped_tokens_get_no_gradient() -> None:
    logp = f64([math.log(1.5), math.log(0.5)], [math.log(1.5), math.log(0.5)]).requires_grad_()
    inputs = LossInputs(logp, f64(1, -1), torch.ones(2, 2, dtype=torch.bool), old_logp=torch.zeros(2, 2).double())
    GRPO.loss(inputs, normaliser=1).loss.backward()
    torch.testing.assert_close(logp.grad, f64([0, -0.5], [1.5, 0]))


def published_objective(levels: list[dict[str, Any]], rewards: list[float], group: int, beta: float) -> float:
    """T2I-R1's objective, transcribed in scalars (METHOD: advantage, ratio, k3, mean over both levels' tokens)."""
    summed, tokens = 0.0, 0
    for i in range(len(rewards)):
        members = rewards[i // group * group : (i // group + 1) * group]
        mean = sum(members) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in members) / (group - 1))
        advantage = (rewards[i] - mean) / (std + 1e-4)
        for level in levels:
            for t in range(level["ids"].shape[1]):
                if not level["mask"][i, t]:
                    continue

                def log_prob(kind: str, level: dict[str, Any] = level, t: int = t, i: int = i) -> float:
                    c, u = level[kind][i, t].tolist(), level[kind + "_uncond"][i, t].tolist()
                    mixed = [b + level["w"] * (a - b) for a, b in zip(c, u, strict=True)]
                    chosen = mixed[int(level["ids"][i, t])]
                    return chosen - math.log(sum(math.exp(x) for x in mixed))

                logp, old, ref = log_prob("policy"), log_prob("old"), log_prob("ref")
                ratio = math.exp(logp - old)
                k3 = math.exp(ref - logp) - (ref - logp) - 1
                clipped = min(max(ratio, 1 - 0.2), 1 + 0.2)
                summed += min(ratio * advantage, clipped * advantage) - beta * k3
                tokens += 1
    return -summed / tokens


@pytest.fixture
def rollout() -> tuple[list[dict[str, Any]], Tensor]:
    """Two levels of unequal length and vocabulary; the plan ends early, the image is guided."""
    levels = []
    for seed, (t, v, w) in enumerate([(4, 6, 1.0), (7, 9, 2.5)]):
        policy, uncond = draw(6, t, v, seed=10 * seed), draw(6, t, v, seed=10 * seed + 1)
        lengths = torch.tensor([4, 1, 2, 3, 4, 2]) if t == 4 else torch.full((6,), t)
        level = {"policy": policy, "policy_uncond": uncond, "w": w, "mask": torch.arange(t) < lengths[:, None]}
        for i, kind in enumerate(("old", "ref")):
            level[kind] = policy + draw(6, t, v, seed=10 * seed + 2 + i, scale=0.2)
            level[kind + "_uncond"] = uncond
        level["ids"] = torch.randint(v, (6, t), generator=torch.Generator().manual_seed(seed))
        levels.append(level)
    return levels, draw(6, seed=77)


def level_inputs(level: dict[str, Any], advantages: Tensor, rows: slice = slice(None)) -> LossInputs:
    def statistics(kind: str, **options: Any) -> Any:
        guided = {"unconditional": level[kind + "_uncond"][rows], "guidance_scale": level["w"]}
        return token_statistics(level[kind][rows], level["ids"][rows], **guided, **options)

    policy = statistics("policy", ref_logits=level["ref"][rows], ref_unconditional=level["ref_uncond"][rows])
    return LossInputs(
        policy.logp, advantages[rows], level["mask"][rows], statistics("old").logp, policy.kl, policy.entropy
    )


def test_the_loss_is_the_published_objective(rollout: tuple[list[dict[str, Any]], Tensor]) -> None:
    levels, rewards = rollout
    want = published_objective(levels, rewards.tolist(), 3, beta=0.04)
    advantages = group_normalised(rewards, 3)
    z = normaliser("token", {str(i): count(level["mask"], 9) for i, level in enumerate(levels)})
    got = sum(GRPO.loss(level_inputs(level, advantages), normaliser=z, beta=0.04).loss.item() for level in levels)
    assert got == pytest.approx(want, rel=1e-12)
    clipped = means(merge(GRPO.loss(level_inputs(x, advantages), normaliser=z).metrics for x in levels))
    assert clipped["clipped_low"] > 0  # the example reaches both sides of the clip
    assert clipped["clipped_high"] > 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_microbatches_add_up_to_the_whole(rollout: tuple[list[dict[str, Any]], Tensor], size: int) -> None:
    """Loss, gradient and logged means do not depend on how the rollouts are cut."""
    levels, rewards = rollout
    advantages = group_normalised(rewards, 3)
    z = normaliser("token", {str(i): count(level["mask"], 9) for i, level in enumerate(levels)})

    def run(size: int) -> tuple[float, list[Tensor], dict[str, float]]:
        for level in levels:
            level["policy"] = level["policy"].detach().requires_grad_()
        outs = [
            GRPO.loss(level_inputs(level, advantages, slice(i, i + size)), normaliser=z, beta=0.04, entropy_bonus=0.01)
            for i in range(0, 6, size)
            for level in levels
        ]
        for out in outs:
            out.loss.backward()
        logged = means(merge(out.metrics for out in outs))
        return sum(out.loss.item() for out in outs), [level["policy"].grad for level in levels], logged

    (loss, gradients, logged), (whole, whole_gradients, whole_logged) = run(size), run(6)
    assert loss == pytest.approx(whole, rel=1e-12)
    for a, b in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    assert logged == pytest.approx(whole_logged)
    assert logged["tokens"] == 16 + 42


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_gradcheck_in_float64(aggregation: Any) -> None:
    old, advantages = draw(3, 4, seed=1, scale=0.3), f64(1.5, -0.5, 0.2)
    mask = torch.arange(4) < torch.tensor([[4], [2], [0]])

    def f(logp: Tensor, kl: Tensor, entropy: Tensor) -> Tensor:
        inputs = LossInputs(logp, advantages, mask, old, kl, entropy)
        surrogate = clipped_surrogate(inputs.log_ratio(), advantages, 0.2, 0.3)
        return assemble(inputs, surrogate, normaliser=7.0, aggregation=aggregation, beta=0.1, entropy_bonus=0.02).loss

    leaves = [draw(3, 4, seed=s, scale=0.3).requires_grad_() for s in (2, 3, 4)]
    assert torch.autograd.gradcheck(f, leaves)


def test_aggregations_by_hand() -> None:
    """Rows of 1 and 3 tokens, S = A = 1 and 2: the three averages of the module's table."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    inputs = LossInputs(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), mask)
    surrogate = clipped_surrogate(inputs.log_ratio(), inputs.advantages, 0.2, 0.2)
    counts = {"plan": count(mask, 5)}
    assert counts["plan"] == LevelCounts(4, 2, 5)
    want = {"token": (1 + 3 * 2) / 4, "sequence": (1 + 2) / 2, "constant": (1 + 3 * 2) / (2 * 5)}
    for name, value in want.items():
        z = normaliser(name, counts)  # type: ignore[arg-type]
        got = assemble(inputs, surrogate, normaliser=z, aggregation=name).loss  # type: ignore[arg-type]
        assert -got.item() == pytest.approx(value)


def test_the_normaliser_covers_all_levels() -> None:
    counts = {"plan": LevelCounts(10, 4, 8), "image": LevelCounts(36, 4, 9)}
    assert normaliser("token", counts) == 46
    assert normaliser("sequence", counts) == 8
    assert normaliser("constant", counts) == 4 * 8 + 4 * 9
    masked = {**counts, "plan": LevelCounts(6, 3, 8)}  # one of four plans is left out: its rollout still counts
    assert normaliser("constant", masked) == 4 * 8 + 4 * 9
    assert normaliser("sequence", masked) == 3 + 4
    dropped = {"plan": LevelCounts(6, 3, 8), "image": LevelCounts(27, 3, 9)}
    assert normaliser("constant", dropped) == 3 * 8 + 3 * 9
    with pytest.raises(ValueError, match="expected token, sequence or constant"):
        normaliser("batch", counts)  # type: ignore[arg-type]


def test_garbage_behind_the_mask_reaches_neither_loss_nor_gradient_nor_metrics() -> None:
    logp = f64([-1, -700, -2]).requires_grad_()
    mask = torch.tensor([[True, False, True]])
    old, kl = f64([-1, -math.inf, -2]), f64([0, math.inf, 0])
    out = GRPO.loss(LossInputs(logp, f64(1), mask, old, kl, kl), normaliser=2, beta=0.1, entropy_bonus=0.1)
    out.loss.backward()
    assert out.loss.item() == -1
    torch.testing.assert_close(logp.grad, f64([-0.5, 0, -0.5]))
    assert all(value.isfinite() for value in out.metrics.values())


def test_a_microbatch_without_counted_tokens_adds_nothing() -> None:
    for t in (0, 3):
        for aggregation in ("token", "sequence", "constant"):
            logp = torch.zeros(2, t, requires_grad=True)
            inputs = LossInputs(logp, torch.ones(2), torch.zeros(2, t, dtype=torch.bool), kl=logp * 1)
            surrogate = clipped_surrogate(inputs.log_ratio(), inputs.advantages, 0.2, 0.2)
            out = assemble(inputs, surrogate, normaliser=5, aggregation=aggregation, beta=0.1)  # type: ignore[arg-type]
            out.loss.backward()
            assert out.loss.item() == 0
            assert logp.grad is not None
            assert logp.grad.eq(0).all()
            assert out.metrics["tokens"] == 0
            assert out.metrics["ratio_deviation_max"] == 0


def test_metrics_have_no_graph() -> None:
    logp = torch.zeros(2, 3, requires_grad=True)
    inputs = LossInputs(logp, torch.ones(2), torch.ones(2, 3, dtype=torch.bool), kl=logp * 2, entropy=logp * 3)
    out = GRPO.loss(inputs, normaliser=6, beta=0.1)
    assert out.loss.requires_grad
    assert not any(value.requires_grad or value.dim() for value in out.metrics.values())


def test_missing_statistics_and_empty_steps_are_named() -> None:
    inputs = LossInputs(torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"algorithm.beta=0.1 needs kl"):
        GRPO.loss(inputs, normaliser=2, beta=0.1)
    with pytest.raises(ValueError, match=r"algorithm.entropy_bonus=0.1 needs entropy"):
        GRPO.loss(inputs, normaliser=2, entropy_bonus=0.1)
    with pytest.raises(ValueError, match="no token of the optimiser step counts"):
        GRPO.loss(inputs, normaliser=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logp": torch.zeros(2)}, r"logp: shape \(2,\), expected \(N, T\)"),
        ({"advantages": torch.zeros(3)}, r"advantages: shape \(3,\), expected \(2,\)"),
        ({"mask": torch.ones(2, 3)}, "mask: dtype torch.float32"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, r"mask: shape \(2, 2\), expected \(2, 3\)"),
        ({"old_logp": torch.zeros(3, 2)}, r"old_logp: shape \(3, 2\)"),
        ({"kl": torch.zeros(2)}, r"kl: shape \(2,\)"),
        ({"entropy": torch.zeros(2, 4)}, r"entropy: shape \(2, 4\)"),
        ({"correction": torch.zeros(2, 4)}, r"correction: shape \(2, 4\)"),
    ],
)
def test_wrong_shapes_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"logp": torch.zeros(2, 3), "advantages": torch.zeros(2), "mask": torch.ones(2, 3, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        LossInputs(**{**arguments, **change})
