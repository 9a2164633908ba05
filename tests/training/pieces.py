"""Collecting and updating on tiny models, without Lightning: the parts of a step the tests look into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels import operations
from src import algorithms
from src.config.schema import AlgorithmConfig, Config, LevelSamplingConfig, RolloutConfig
from src.rewards.ensemble import RewardEnsemble
from src.training.collect import Collected, collect
from src.training.update import Metrics, MicroBatch, microbatches, run_update, step_loss
from src.values import IMAGE, PLAN, Experience, PromptBatch, PromptRecord
from tests.policies.tiny import exact_policy
from tests.policies.toy import ToyPolicy
from tests.training.experts import Red

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .")
OPERATIONS = operations("torch", "cpu")
ROLLOUT = RolloutConfig(
    group_size=4,
    guidance_scale=2.0,
    max_plan_tokens=7,
    plan=LevelSamplingConfig(0.9),
    image=LevelSamplingConfig(1.1),
)
BETA = 0.05
# Relative: rewards, and the advantages made of them, are float32; what rests on them agrees with float64 to its
# rounding, 6e-8 an operation, of which there are about ten.
ADVANTAGES = 1e-6
LONGEST = {PLAN: ROLLOUT.max_plan_tokens, IMAGE: 9}


def exact(kind: str) -> Any:
    """A float64 policy: "toy", or a Janus trained as "lora" or "full"."""
    return ToyPolicy(dtype=torch.float64) if kind == "toy" else exact_policy(lora=None if kind == "full" else {"r": 4})


def prompt_batch(step: int = 0, prompts: tuple[str, ...] = PROMPTS) -> PromptBatch:
    return PromptBatch(tuple(PromptRecord(p) for p in prompts), tuple(range(len(prompts))), step)


def collected(
    policy: Any,
    *,
    guided: bool = True,
    reference: bool = True,
    penalty: float = 0.0,
    step: int = 0,
    group_size: int = 4,
    rollout: RolloutConfig = ROLLOUT,
    expert: Any = None,
    algorithm: str = "grpo",
) -> Collected:
    """One prompt batch, collected."""
    variant = replace(update_settings(guided=guided, beta=BETA if reference else 0.0), unfinished_plan_penalty=penalty)
    return collect(
        policy,
        RewardEnsemble([expert or Red()]),
        OPERATIONS,
        algorithms.load(algorithm),
        prompt_batch(step),
        Config(algorithm=variant, rollout=replace(rollout, group_size=group_size)),
    )


def update_settings(*, guided: bool = True, beta: float = BETA, clip: float = 0.2) -> AlgorithmConfig:
    return AlgorithmConfig(beta=beta, logp="guided" if guided else "conditional", clip_low=clip, clip_high=clip)


def updated(
    policy: Any,
    experience: Experience,
    settings: AlgorithmConfig,
    size: int | None = None,
    algorithm: str = "grpo",
    split_levels: bool = False,
) -> tuple[float, dict[str, Tensor], Metrics, Experience]:
    """The loss, gradients by parameter, metrics and the experience after one accumulation over all parts."""
    variant = algorithms.load(algorithm)
    parts = list(microbatches(experience, size, variant, LONGEST, lambda local: local, 1, split_levels=split_levels))
    losses: list[float] = []
    policy.zero_grad(set_to_none=True)

    def forward(part: MicroBatch) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        return step_loss(policy(part.levels), part, OPERATIONS, variant, settings)

    def backward(loss: Tensor) -> None:
        losses.append(loss.item())
        loss.backward()

    metrics, after = run_update(experience, parts, forward, backward)
    return sum(losses), gradients(policy), metrics, after


def gradients(policy: Any) -> dict[str, Tensor]:
    """A copy of every gradient there is."""
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-10) -> None:
    """Equal to within `relative` of the largest gradient; none may be missing or all zero.

    In float64, whose rounding is 1e-13 of it at most: float32's depends on the processor and the batch's shape.
    """
    assert got.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0
    for name, value in expected.items():
        assert got[name].dtype == value.dtype == torch.float64, f"{name} is not compared in float64"
        difference = float((got[name] - value).abs().max())
        assert difference <= relative * largest, f"{name}: off by {difference}, largest gradient {largest}"
