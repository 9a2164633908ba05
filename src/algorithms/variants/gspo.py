"""GSPO, group sequence policy optimisation (arXiv 2507.18071, eq. 5-7), one ratio a level.

    s_i = exp(mean over the tokens of a sequence of (logp - old_logp))
    loss = -mean over sequences of min(s_i * A, clip(s_i, 1 - clip_low, 1 + clip_high) * A)

A rollout's plan and its image are two sequences, each with its own s_i. As s_i is a geometric mean, it stays
near 1: the paper clips at 3e-4 below and 4e-4 above.
"""

from __future__ import annotations

from src.algorithms.advantages import group_normalised
from src.algorithms.algorithm import Algorithm
from src.algorithms.losses import LossInputs, Surrogate, clipped_surrogate


def sequence_clipped(inputs: LossInputs, clip_low: float, clip_high: float) -> Surrogate:
    """The clipped ratio of a sequence times its advantage, the same for each of its tokens."""
    lengths = inputs.mask.sum(1, keepdim=True).clamp_min(1)
    log_ratio = inputs.log_ratio().sum(1, keepdim=True) / lengths
    surrogate = clipped_surrogate(log_ratio, inputs.advantages, clip_low, clip_high)
    return Surrogate(*(x.expand_as(inputs.mask) for x in surrogate))


ALGORITHM = Algorithm("gspo", group_normalised, sequence_clipped, aggregation="sequence", per_token=False)
