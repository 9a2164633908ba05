"""The objective of a token whose gradient needs no second pass: its value and slope in closed form.

    J = c * S(logp) - beta * KL + eta * H,        loss = -sum of weight * J

with S one of the surrogates below, c a weight for a sampler that differs from training (1 without one), H the
entropy. Old log-probs, advantages and weights (mask, sequence weight and normaliser in one) are known before the
forward pass, so the derivative with respect to the logits is known at its end.

============== ===================================================== ==================================
surrogate      S, with ratio = exp(logp - old_logp)                  dS / dlogp
============== ===================================================== ==================================
clipped        min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)    ratio * A, 0 where clipped
weight_clipped stop_gradient(clip(ratio, 1 - low, 1 + high)) * A *   clip(ratio, ...) * A
               logp
reinforce      A * logp                                              A
============== ===================================================== ==================================

Sources: PPO (arXiv 1707.06347, eq. 7) and GRPO (2402.03300); CISPO (2506.13585); REINFORCE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.kl import KL_NAMES

SURROGATES: tuple[str, ...] = ("reinforce", "clipped", "weight_clipped")


@dataclass(frozen=True, slots=True)
class Objective:
    """Which surrogate, with its bounds, and what stands beside it in the loss.

    beta >= 0 weighs the KL named `kl` (k1, k2, k3, exact, or None: none is measured). entropy: measure it;
    entropy_bonus eta >= 0 weighs it. Raises ValueError for names unknown and weights without their statistic.
    """

    surrogate: str = "clipped"
    clip_low: float = 0.2
    clip_high: float = 0.2
    beta: float = 0.0
    kl: str | None = "k3"
    entropy_bonus: float = 0.0
    entropy: bool = True

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate={self.surrogate!r}: expected one of {', '.join(SURROGATES)}")
        if self.kl is not None and self.kl not in KL_NAMES:
            raise ValueError(f"kl={self.kl!r}: expected one of {', '.join(KL_NAMES)}, or None")
        if self.beta and self.kl is None:
            raise ValueError(f"beta={self.beta} weights a KL, but kl=None sets none")
        if self.entropy_bonus and not self.entropy:
            raise ValueError(f"entropy_bonus={self.entropy_bonus} weights the entropy, but entropy=False")


class TokenTerms(NamedTuple):
    """What is known of each token beforehand, (R,) float32 each.

    advantages; weights: 0 where a token does not count, else its share of the loss; old_logp None: ratio 1;
    correction None: 1.
    """

    advantages: Tensor
    weights: Tensor
    old_logp: Tensor | None = None
    correction: Tensor | None = None

    def rows(self, index: slice) -> TokenTerms:
        """Some of the tokens."""
        return TokenTerms(*(None if x is None else x[index] for x in self))  # type: ignore[arg-type]


def surrogate_and_slope(objective: Objective, logp: Tensor, terms: TokenTerms) -> tuple[Tensor, Tensor]:
    """(S, dS/dlogp) (R,), the correction included; a token that does not count has ratio 1."""
    advantages = terms.advantages
    value, slope = advantages * logp, advantages
    if objective.surrogate != "reinforce":
        ratio = torch.ones_like(logp)
        if terms.old_logp is not None:
            ratio = (logp - terms.old_logp).masked_fill(terms.weights == 0, 0).exp()
        bounded = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * advantages
        if objective.surrogate == "clipped":
            free = ratio * advantages
            value, slope = torch.minimum(free, bounded), torch.where(free <= bounded, free, 0)
        else:
            value, slope = bounded * logp, bounded
    if terms.correction is not None:
        value, slope = value * terms.correction, slope * terms.correction
    return value, slope
