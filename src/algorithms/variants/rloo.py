"""RLOO, REINFORCE with a leave-one-out baseline (arXiv 2402.14740; Kool et al. 2019).

    A = r - mean of the group's other rewards
    loss = -sum of A * logp over tokens / (rollouts * longest possible length)

The constant length instead of 1 only scales the learning rate, and keeps losses of the two levels and of
other variants comparable. No ratio and no clipping: one update on each rollout. On-policy its gradient is
Dr.GRPO's times G / (G - 1).
"""

from __future__ import annotations

import torch

from src.algorithms.advantages import leave_one_out
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import LossInputs, Surrogate


def reinforce(inputs: LossInputs, clip_low: float, clip_high: float) -> Surrogate:
    """A * logp; the clip bounds are not used."""
    never = torch.zeros_like(inputs.mask)
    value = inputs.advantages.unsqueeze(1) * inputs.logp
    return Surrogate(value, inputs.log_ratio().detach().exp(), never, never)


ALGORITHM = Algorithm(
    "rloo",
    leave_one_out,
    reinforce,
    aggregation="constant",
    clips=False,
    several_updates=False,
    closed_form="reinforce",
)
