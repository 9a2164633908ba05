"""CISPO, clipped importance sampling (MiniMax-M1, arXiv 2506.13585, eq. 4-5).

    S = stop_gradient(clip(ratio, 1 - clip_low, 1 + clip_high)) * A * logp

The weight is clipped, not the update: no token loses its gradient. The paper leaves the lower side open
(``clip_low=1``) and tunes the upper one; ScaleRL (arXiv 2510.13786) finds bounds of 4 to 8 alike
(``clip_high`` 3 to 7).
"""

from __future__ import annotations

from src.algorithms.advantages import group_normalised
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import LossInputs, Surrogate


def weight_clipped(inputs: LossInputs, clip_low: float, clip_high: float) -> Surrogate:
    """REINFORCE with the bounded ratio as a constant weight."""
    ratio = inputs.log_ratio().detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    value = weight * inputs.advantages.unsqueeze(1) * inputs.logp
    return Surrogate(value, ratio, ratio < 1 - clip_low, ratio > 1 + clip_high)


ALGORITHM = Algorithm("cispo", group_normalised, weight_clipped, closed_form="weight_clipped")
