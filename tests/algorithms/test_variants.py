"""Each variant against its paper's formula, transcribed in scalars, and against what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from src.algorithms import LossInputs, count, load, means, names, normaliser

GROUP = 3
LOW, HIGH = 0.2, 0.28
MAX_TOKENS = 8


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.fixture
def case() -> dict[str, Any]:
    """Six rollouts, two groups; rows of 5, 1, 4, 5, 3, 2 tokens; ratios well beyond the clip on both sides."""
    logp = -draw(6, 5, seed=1).abs()
    mask = torch.arange(5) < torch.tensor([[5], [1], [4], [5], [3], [2]])
    return {
        "logp": logp,
        "old": logp + draw(6, 5, seed=2, scale=0.4),
        "mask": mask,
        "rewards": draw(6, seed=3),
        "kl": draw(6, 5, seed=4).square(),
    }


def loss_of(name: str, case: dict[str, Any], beta: float = 0.0, **changes: Any) -> Tensor:
    algorithm, case = load(name), {**case, **changes}
    advantages = algorithm.advantages(case["rewards"], GROUP)
    inputs = LossInputs(case["logp"], advantages, case["mask"], case["old"], case["kl"])
    z = normaliser(algorithm.aggregation, {"image": count(case["mask"], MAX_TOKENS)})
    return algorithm.loss(inputs, normaliser=z, clip_low=LOW, clip_high=HIGH, beta=beta).loss


# The papers' objectives, in scalars. rows: for each rollout the lists (logp, old_logp) of its counted tokens.

Rows = list[list[tuple[float, float]]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def std(values: list[float]) -> float:
    return math.sqrt(sum((x - mean(values)) ** 2 for x in values) / (len(values) - 1))


def group_of(rewards: list[float], i: int) -> list[float]:
    return rewards[i // GROUP * GROUP : (i // GROUP + 1) * GROUP]


def ppo(ratio: float, advantage: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)


def over_tokens(rows: Rows, term: Callable[[int, float, float], float]) -> float:
    return sum(term(i, new, old) for i, row in enumerate(rows) for new, old in row)


def token_count(rows: Rows) -> int:
    return sum(len(row) for row in rows)


def grpo(rows: Rows, rewards: list[float]) -> float:
    def term(i: int, new: float, old: float) -> float:
        group = group_of(rewards, i)
        return ppo(math.exp(new - old), (rewards[i] - mean(group)) / (std(group) + 1e-4))

    return over_tokens(rows, term) / token_count(rows)


def dr_grpo(rows: Rows, rewards: list[float]) -> float:
    def term(i: int, new: float, old: float) -> float:
        return ppo(math.exp(new - old), rewards[i] - mean(group_of(rewards, i)))

    return over_tokens(rows, term) / (len(rows) * MAX_TOKENS)


def gspo(rows: Rows, rewards: list[float]) -> float:
    values = []
    for i, row in enumerate(rows):
        group = group_of(rewards, i)
        s = math.exp(sum(new for new, _ in row) / len(row) - sum(old for _, old in row) / len(row))
        values.append(ppo(s, (rewards[i] - mean(group)) / (std(group) + 1e-4)))
    return mean(values)


def cispo(rows: Rows, rewards: list[float]) -> float:
    def term(i: int, new: float, old: float) -> float:
        group = group_of(rewards, i)
        weight = min(max(math.exp(new - old), 1 - LOW), 1 + HIGH)
        return weight * (rewards[i] - mean(group)) / (std(group) + 1e-4) * new

    return over_tokens(rows, term) / token_count(rows)


def rloo(rows: Rows, rewards: list[float]) -> float:
    def term(i: int, new: float, old: float) -> float:
        others = list(group_of(rewards, i))
        others.pop(i % GROUP)
        return (rewards[i] - mean(others)) * new

    return over_tokens(rows, term) / (len(rows) * MAX_TOKENS)


def reinforce_pp(rows: Rows, rewards: list[float]) -> float:
    def term(i: int, new: float, old: float) -> float:
        return ppo(math.exp(new - old), (rewards[i] - mean(rewards)) / (std(rewards) + 1e-4))

    return over_tokens(rows, term) / token_count(rows)


def reinforce_pp_baseline(rows: Rows, rewards: list[float]) -> float:
    centred = [reward - mean(group_of(rewards, i)) for i, reward in enumerate(rewards)]

    def term(i: int, new: float, old: float) -> float:
        return ppo(math.exp(new - old), (centred[i] - mean(centred)) / (std(centred) + 1e-4))

    return over_tokens(rows, term) / token_count(rows)


PUBLISHED = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": grpo,  # with clip_high above clip_low, as here
    "gspo": gspo,
    "cispo": cispo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


def test_every_variant_has_its_published_objective_here() -> None:
    assert set(PUBLISHED) == set(names())


@pytest.mark.parametrize("name", names())
def test_the_loss_is_the_published_objective(name: str, case: dict[str, Any]) -> None:
    rows = [
        list(zip(new[keep].tolist(), old[keep].tolist(), strict=True))
        for new, old, keep in zip(case["logp"], case["old"], case["mask"], strict=True)
    ]
    want = -PUBLISHED[name](rows, case["rewards"].tolist())
    assert loss_of(name, case).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", sorted(set(names()) - {"cispo"}))
def test_gradcheck_in_float64(name: str, case: dict[str, Any]) -> None:
    logp = case["logp"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(name, case, beta=0.1, logp=x), (logp,))


def test_cispo_s_gradient_is_its_weight_and_no_token_loses_it(case: dict[str, Any]) -> None:
    logp = case["logp"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of("cispo", case, logp=logp), logp)
    weight = (case["logp"] - case["old"]).exp().clamp(1 - LOW, 1 + HIGH)
    advantages = load("cispo").advantages(case["rewards"], GROUP)
    want = -weight * advantages[:, None] * case["mask"] / case["mask"].sum()
    torch.testing.assert_close(gradient, want)
    assert gradient[case["mask"]].ne(0).all()
    assert ((case["logp"] - case["old"]).exp()[case["mask"]] > 1 + HIGH).any()


@pytest.mark.parametrize("name", ["grpo", "cispo", "dapo"])
def test_first_updates_of_token_variants_agree(name: str, case: dict[str, Any]) -> None:
    """With old = current weights all ratios are 1: the clipped and the weighted form have one gradient, -A/Z."""
    logp = case["logp"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(name, case, logp=logp, old=None), logp)
    advantages = load("grpo").advantages(case["rewards"], GROUP)
    torch.testing.assert_close(gradient, -advantages[:, None] * case["mask"] / 20)


def test_gspo_s_first_update_weighs_sequences_not_tokens(case: dict[str, Any]) -> None:
    logp = case["logp"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of("gspo", case, logp=logp, old=None), logp)
    advantages = load("gspo").advantages(case["rewards"], GROUP)
    want = -advantages[:, None] * case["mask"] / case["mask"].sum(1, keepdim=True) / 6
    torch.testing.assert_close(gradient, want)


def test_rloo_on_policy_is_dr_grpo_times_g_over_g_minus_1(case: dict[str, Any]) -> None:
    gradients = []
    for name in ("rloo", "dr_grpo"):
        logp = case["logp"].clone().requires_grad_()
        gradients += torch.autograd.grad(loss_of(name, case, logp=logp, old=None), logp)
    torch.testing.assert_close(gradients[0], gradients[1] * GROUP / (GROUP - 1))


@pytest.mark.parametrize("name", names())
def test_rows_without_tokens_and_garbage_behind_the_mask_change_nothing(name: str, case: dict[str, Any]) -> None:
    """The third rollout's plan is masked out whole (overlong filtering), its padding holds infinities."""
    mask = case["mask"].clone()
    mask[2] = False
    logp = case["logp"].masked_fill(~mask, -math.inf).requires_grad_()
    loss = loss_of(name, case, beta=0.1, mask=mask, logp=logp)
    clean = case["logp"].clone().requires_grad_()
    want = loss_of(name, case, beta=0.1, mask=mask, logp=clean)
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    gradient, want_gradient = torch.autograd.grad(loss, logp)[0], torch.autograd.grad(want, clean)[0]
    torch.testing.assert_close(gradient, want_gradient)
    assert gradient[2].eq(0).all()


@pytest.mark.parametrize("name", names())
def test_microbatches_add_up(name: str, case: dict[str, Any]) -> None:
    algorithm = load(name)
    advantages = algorithm.advantages(case["rewards"], GROUP)
    z = normaliser(algorithm.aggregation, {"image": count(case["mask"], MAX_TOKENS)})

    def part(rows: slice) -> float:
        inputs = LossInputs(*(x[rows] for x in (case["logp"], advantages, case["mask"], case["old"], case["kl"])))
        return algorithm.loss(inputs, normaliser=z, beta=0.1).loss.item()

    assert part(slice(0, 1)) + part(slice(1, 4)) + part(slice(4, 6)) == pytest.approx(part(slice(0, 6)), rel=1e-12)


@pytest.mark.parametrize("name", names())
def test_a_weight_on_the_advantage_is_a_weight_on_the_policy_term(name: str, case: dict[str, Any]) -> None:
    """What weigh_levels relies on; weight 0 leaves exactly beta times the KL."""
    algorithm = load(name)
    advantages = algorithm.advantages(case["rewards"], GROUP)

    def loss(weight: float, beta: float) -> float:
        inputs = LossInputs(case["logp"], advantages * weight, case["mask"], case["old"], case["kl"])
        return algorithm.loss(inputs, normaliser=20.0, beta=beta).loss.item()

    kl_only = loss(0.0, 0.1)
    assert kl_only > 0
    assert loss(0.3, 0.0) == pytest.approx(0.3 * loss(1.0, 0.0))
    assert loss(0.3, 0.1) == pytest.approx(0.3 * loss(1.0, 0.0) + kl_only)


@pytest.mark.parametrize("name", names())
def test_the_correction_multiplies_the_policy_term_alone(name: str, case: dict[str, Any]) -> None:
    algorithm = load(name)
    advantages = algorithm.advantages(case["rewards"], GROUP)

    def loss(correction: Tensor | None, beta: float) -> float:
        inputs = LossInputs(case["logp"], advantages, case["mask"], case["old"], case["kl"], correction=correction)
        return algorithm.loss(inputs, normaliser=20.0, beta=beta).loss.item()

    half = torch.full((6, 5), 0.5, dtype=torch.float64)
    penalty = loss(None, 0.1) - loss(None, 0.0)
    assert loss(half, 0.1) == pytest.approx(0.5 * loss(None, 0.0) + penalty)


def test_clip_metrics_of_the_variants() -> None:
    """Ratios 2 and 0.1 with A > 0: PPO's clip cuts the first only; CISPO bounds both; RLOO none."""
    logp = torch.tensor([[2.0, 0.1]]).log()
    inputs = LossInputs(logp, torch.ones(1), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
    seen = {}
    for name in ("grpo", "cispo", "rloo", "gspo"):
        logged = means(load(name).loss(inputs, normaliser=2).metrics)
        seen[name] = (logged["clipped_low"], logged["clipped_high"], pytest.approx(logged["ratio"]))
    assert seen == {
        "grpo": (0, 0.5, 1.05),
        "cispo": (0.5, 0.5, 1.05),
        "rloo": (0, 0, 1.05),
        "gspo": (0, 0, math.sqrt(0.2)),  # one ratio for the sequence, the geometric mean; low but A > 0
    }


def test_facts_hold() -> None:
    """per_token: does one token's gradient depend on another's log-prob? several_updates: is there a ratio?
    whole_batch: do other groups matter? group_baseline: does a group of equal rewards say nothing?
    """
    mask = torch.ones(1, 3, dtype=torch.bool)
    for name in names():
        algorithm = load(name)

        def gradient(logp: list[float], algorithm: Any = algorithm) -> Tensor:
            x = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
            inputs = LossInputs(x, torch.ones(1).double(), mask, torch.full((1, 3), -1.0).double())
            return torch.autograd.grad(algorithm.loss(inputs, normaliser=3).loss, x)[0][0]

        first, other = gradient([-1.0, -1.0, -1.0]), gradient([-1.0, -1.05, -0.98])
        assert (first[0] == other[0]) == algorithm.per_token, name
        assert (first[1] != other[1]) == algorithm.several_updates, name
        shifted = algorithm.advantages(torch.tensor([0.0, 1.0, 3.0, 7.0]), 2)[:2]
        assert (not shifted.equal(algorithm.advantages(torch.tensor([0.0, 1.0, 3.0, 9.0]), 2)[:2])) == (
            algorithm.whole_batch
        ), name
        silent = algorithm.advantages(torch.tensor([1.0, 1.0, 3.0, 9.0]), 2)[:2]
        assert silent.eq(0).all() == algorithm.group_baseline, name
