"""From the experts' scores to one reward: pure functions of (signed scores, applicable, weights).

All take signed scores (N, E) float32 (higher is better, normalised or not; values where an expert does not apply are
never read), applicable (N, E) bool and weights (E,) float32 >= 0, and return totals (N,) float32. An
expert of weight 0 is a monitor: it never enters a total. A row that no expert with a weight applies to is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]
# The signed range of every expert's scores, by name.
Ranges = Mapping[str, tuple[float, float]]


def weighted_sum(scores: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * score over the applicable experts, as the released T2I-R1 combines them (2505.00703)."""
    taking_part = applicable & (weights > 0)
    return _judged((weights * scores).masked_fill(~taking_part, 0.0).sum(dim=1), taking_part)


def weighted_mean(scores: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum divided by the weights that took part: prompts with fewer experts stay comparable."""
    return weighted_sum(scores, applicable, weights) / (weights * applicable).sum(dim=1)


def minimum(scores: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """The worst of the applicable scores; a weight only says which experts take part."""
    taking_part = applicable & (weights > 0)
    return _judged(scores.masked_fill(~taking_part, float("inf")).amin(dim=1), taking_part)


def weighted_product(scores: Tensor, applicable: Tensor, weights: Tensor) -> Tensor:
    """The product of score ** weight over the applicable experts, for scores >= 0: one 0 makes the reward 0."""
    taking_part = applicable & (weights > 0)
    # A score may lie below 0 by rounding, where a power would be NaN.
    factors = torch.where(taking_part, scores, 1.0).clamp(min=0.0) ** torch.where(weights > 0, weights, 1.0)
    return _judged(factors.prod(dim=1), taking_part)


COMBINE: dict[str, Combine] = {
    "sum": weighted_sum,
    "mean": weighted_mean,
    "min": minimum,
    "product": weighted_product,
}


def check_domain(combine: str, weights: Mapping[str, float], ranges: Ranges, normalise: Mapping[str, str]) -> None:
    """Raise ValueError, naming the expert, if `combine` is not defined for such scores.

    weights, signed ranges and normalisation of every expert, by name. The product needs scores >= 0 in their own
    units. The minimum compares scores with each other: all in their own units or all normalised the same way, and
    weights cannot scale them.
    """
    trained = [name for name, weight in weights.items() if weight > 0]
    if combine == "product":
        for name in trained:
            low, high = ranges[name]
            if low < 0:
                raise ValueError(
                    f"rewards.combine=product: expert {name!r} has scores in [{low}, {high}], but a product"
                    " needs scores >= 0; give it weight 0, or choose sum or mean"
                )
            if normalise[name] != "none":
                raise ValueError(
                    f"rewards.combine=product: rewards.normalise={normalise[name]} makes the scores of expert {name!r}"
                    " negative as often as positive; use normalise=none, or choose sum or mean"
                )
    if combine == "min":
        for name in trained:
            if weights[name] != 1:
                raise ValueError(
                    f"rewards.weights.{name}={weights[name]}: with rewards.combine=min an expert counts (1) or"
                    " only monitors (0); a smaller weight would lower its scores"
                )
            if normalise[name] != normalise[trained[0]]:
                raise ValueError(
                    f"rewards.combine=min: expert {trained[0]!r} is normalised by {normalise[trained[0]]!r}, expert"
                    f" {name!r} by {normalise[name]!r}; scores in different units cannot be compared"
                )


def _judged(totals: Tensor, taking_part: Tensor) -> Tensor:
    return totals.masked_fill(~taking_part.any(dim=1), float("nan"))
