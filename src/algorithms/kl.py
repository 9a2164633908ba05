"""The KL penalty of a run: which estimators there are and what each asks for. The formulas: kernels/kl.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels import ESTIMATORS, KL_NAMES, KlName, kl_estimate

__all__ = [
    "ESTIMATORS",
    "KL_NAMES",
    "KlName",
    "kl_estimate",
    "needs_reference",
    "needs_reference_logits",
    "penalised_reward",
]


def needs_reference(beta: float) -> bool:
    """Whether the reference has to be run at all: with beta 0 its pass is skipped."""
    return beta != 0.0


def needs_reference_logits(name: str) -> bool:
    """Whether the KL `name` needs the reference's whole rows, not just the tokens' log-probs."""
    return name == "exact"


def penalised_reward(total: Tensor, levels: Sequence[tuple[Tensor, Tensor]], beta: float) -> Tensor:
    """Rewards (N,) minus beta times the KL of the whole rollout: KL in the reward instead of in the loss.

    levels: (kl (N, T), mask (N, T)) of each. The sum over tokens is the log ratio of sequences, as RLHF's
    ``r - beta * log(pi / ref)`` (RLOO, arXiv 2402.14740); with k1 the policy gradient is unbiased.
    Without graph. With 600 tokens a beta of 0.01 weighs as much as 6 times the mean KL: choose it smaller
    than for KL in the loss, which is a mean over tokens.
    """
    for kl, mask in levels:
        total = total - beta * kl.detach().masked_fill(~mask, 0).sum(1)
    return total
