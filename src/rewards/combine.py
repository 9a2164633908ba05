"""From the experts' scores to one reward: pure functions of (signed scores, applicable, weights).

All take signed scores (N, E) float32 (higher is better; whatever stands where an expert does not apply is
never read), applicable (N, E) bool and weights (E,) float32 >= 0, and return totals (N,) float32. An
expert of weight 0 is a monitor: it never enters a total.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def weighted_sum(scores: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * score over the applicable experts, as the released T2I-R1 combines them (2505.00703)."""
    return (weights * scores).masked_fill(~(applicable & (weights > 0)), 0.0).sum(dim=1)


def weighted_mean(scores: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum divided by the weights that took part: prompts with fewer experts stay comparable."""
    return weighted_sum(scores, applicable, weights) / (weights * applicable).sum(dim=1)


COMBINE: dict[str, Combine] = {"sum": weighted_sum, "mean": weighted_mean}
