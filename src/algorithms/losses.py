"""From token statistics to the loss of one level: what all variants share.

The loss of a level is

    -(1/Z) * sum_{i,t} mask_it * w_i * (c_it * S_it - beta * KL_it + eta * H_it)

with S the variant's surrogate, c the optional correction for a sampler that differs from training, H the
entropy with bonus eta. How tokens add up to sequences is the variant's *aggregation*, which fixes w_i and Z:

========= ========= ============================== =============================================
name      w_i       Z, over the optimiser step     who
========= ========= ============================== =============================================
token     1         counted tokens                 T2I-R1 (2505.00703), DAPO (2503.14476)
sequence  1/|o_i|   sequences                      DeepSeekMath's GRPO (2402.03300), GSPO (2507.18071)
constant  1         rollouts * longest possible    Dr.GRPO (2503.20783)
========= ========= ============================== =============================================

Sequences are those with a counted token. Rollouts are all the step learns from: a plan masked for its length
leaves the constant as it is, only a rollout that dynamic sampling dropped, image and all, is none.

Z covers both levels, all microbatches and all ranks and is given from outside (:func:`normaliser`), so the
losses of the parts simply add up to the loss of the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from src.algorithms.metrics import TOKENS, masked_max, masked_sum
from src.values import LossOutput

Aggregation = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The statistics of one level of some rollouts, (N, T) each but for `advantages` (N,).

    logp has the graph; old_logp is that of the policy before the first update on this rollout, None for a
    strictly on-policy step (then ``logp.detach()``, the ratio is 1). mask bool, True = counts. kl and
    entropy, if given, have the graph, too. correction: weights of the surrogate without graph
    (:mod:`src.algorithms.correction`).
    """

    logp: Tensor
    advantages: Tensor
    mask: Tensor
    old_logp: Tensor | None = None
    kl: Tensor | None = None
    entropy: Tensor | None = None
    correction: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.logp.shape)
        if len(shape) != 2:
            raise ValueError(f"logp: shape {shape}, expected (N, T)")
        if self.mask.dtype != torch.bool:
            raise ValueError(f"mask: dtype {self.mask.dtype}, expected torch.bool")
        if tuple(self.advantages.shape) != shape[:1]:
            raise ValueError(f"advantages: shape {tuple(self.advantages.shape)}, expected {shape[:1]}, one a rollout")
        for name in ("mask", "old_logp", "kl", "entropy", "correction"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name}: shape {tuple(value.shape)}, expected {shape}, the shape of logp")

    def log_ratio(self) -> Tensor:
        """log(policy / old policy) (N, T), 0 where the mask is off."""
        old_logp = self.logp if self.old_logp is None else self.old_logp
        return (self.logp - old_logp.detach()).masked_fill(~self.mask, 0)


class Surrogate(NamedTuple):
    """What a variant maximises for each token, value (N, T) with graph, and what it did for the logs.

    ratio (N, T): the importance ratio it used; clipped_low / clipped_high (N, T) bool: where clipping at
    that side took the gradient away (or, for CISPO, bounded the weight).
    """

    value: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    """min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) (PPO, arXiv 1707.06347, eq. 7).

    log_ratio (N, T) or (N, 1) for one ratio a sequence; advantages (N,).
    """
    ratio, advantage = log_ratio.exp(), advantages.unsqueeze(1)
    value = torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    seen = ratio.detach()
    clipped_low = (seen < 1 - clip_low) & (advantage < 0)
    clipped_high = (seen > 1 + clip_high) & (advantage > 0)
    return Surrogate(value, seen, clipped_low, clipped_high)


def token_clipped(inputs: LossInputs, clip_low: float, clip_high: float) -> Surrogate:
    """:func:`clipped_surrogate` of each token's own ratio: what most variants maximise."""
    return clipped_surrogate(inputs.log_ratio(), inputs.advantages, clip_low, clip_high)


def assemble(
    inputs: LossInputs,
    surrogate: Surrogate,
    *,
    normaliser: float | Tensor,
    aggregation: Aggregation = "token",
    beta: float = 0.0,
    entropy_bonus: float = 0.0,
) -> LossOutput:
    """The loss of the module's docstring, with metrics that add up (:mod:`src.algorithms.metrics`).

    normaliser: Z, above 0. Metrics, sums over counted tokens: tokens, surrogate, logp, ratio, drift
    (|logp - old_logp|), clipped_low, clipped_high, and kl, entropy, correction where given; maximum:
    ratio_deviation_max, of |ratio - 1|. Raises ValueError where beta or the bonus lack their statistic.
    """
    if not normaliser > 0:
        raise ValueError(f"normaliser={float(normaliser)}: no token of the optimiser step counts")
    objective = surrogate.value if inputs.correction is None else surrogate.value * inputs.correction
    if beta:
        objective = objective - beta * _needed(inputs.kl, "kl", f"algorithm.beta={beta}")
    if entropy_bonus:
        bonus = _needed(inputs.entropy, "entropy", f"algorithm.entropy_bonus={entropy_bonus}")
        objective = objective + entropy_bonus * bonus
    objective = objective.masked_fill(~inputs.mask, 0)
    if aggregation == "sequence":
        objective = objective / inputs.mask.sum(1, keepdim=True).clamp_min(1)
    return LossOutput(-objective.sum() / normaliser, _metrics(inputs, surrogate))


def token_weights(mask: Tensor, aggregation: Aggregation) -> Tensor:
    """w_i of the module's docstring for every token (N, T), float32; 0 where the mask is off."""
    weights = mask.float()
    return weights / weights.sum(1, keepdim=True).clamp_min(1) if aggregation == "sequence" else weights


class LevelCounts(NamedTuple):
    """What normalisers are made of; tokens and sequences add up over microbatches and ranks.

    tokens: counted ones. sequences: rows with at least one. max_tokens: the longest a row can become (L of
    a plan, K of an image), a setting, not the longest that happened.
    """

    tokens: float
    sequences: float
    max_tokens: int


def count(mask: Tensor, max_tokens: int) -> LevelCounts:
    """The counts of a level's mask (N, T)."""
    return LevelCounts(int(mask.sum()), int(mask.any(1).sum()), max_tokens)


def normaliser(aggregation: Aggregation, counts: Mapping[str, LevelCounts]) -> float:
    """Z of an optimiser step from the counts of each of its levels, summed over microbatches and ranks."""
    return sum(_size(aggregation, level, _rollouts(counts)) for level in counts.values())


def shared_normalisers(
    aggregation: Aggregation, counts: Mapping[str, LevelCounts], shares: Mapping[str, float]
) -> dict[str, float]:
    """One Z for each level, such that the loss is ``sum_l share_l * (mean over level l)``, shares made to sum to 1.

    With one common Z a plan of 50 tokens beside an image of 576 has 8 % of the weight; here it has what
    `shares` says, policy term, KL and entropy alike. Levels with share 0 or without a token get infinity: they
    add nothing.
    Raises ValueError for a negative share, or none above 0.
    """
    total = sum(shares[name] for name in counts)
    if total <= 0 or any(shares[name] < 0 for name in counts):
        raise ValueError(f"shares of the levels {dict(shares)}: expected none below 0 and one above")
    rollouts = _rollouts(counts)
    return {
        name: _size(aggregation, level, rollouts) * total / shares[name]
        if shares[name] and level.tokens
        else float("inf")
        for name, level in counts.items()
    }


def _rollouts(counts: Mapping[str, LevelCounts]) -> float:
    """How many rollouts the step learns from: every one of them has at least its image, where a plan may be masked."""
    return max(level.sequences for level in counts.values())


def _size(aggregation: Aggregation, level: LevelCounts, rollouts: float) -> float:
    if aggregation == "token":
        return float(level.tokens)
    if aggregation == "sequence":
        return float(level.sequences)
    if aggregation == "constant":
        return float(rollouts * level.max_tokens)
    raise ValueError(f"aggregation {aggregation!r}: expected token, sequence or constant")


def _needed(value: Tensor | None, name: str, setting: str) -> Tensor:
    if value is None:
        raise ValueError(f"{setting} needs {name} of every token, but LossInputs.{name} is None")
    return value


def _metrics(inputs: LossInputs, surrogate: Surrogate) -> dict[str, Tensor]:
    mask = inputs.mask
    metrics = {
        TOKENS: mask.sum().to(inputs.logp.dtype),
        "surrogate": masked_sum(surrogate.value.expand_as(mask), mask),
        "logp": masked_sum(inputs.logp, mask),
        "ratio": masked_sum(surrogate.ratio.expand_as(mask), mask),
        "ratio_deviation_max": masked_max((surrogate.ratio - 1).abs().expand_as(mask), mask),
        "drift": inputs.log_ratio().detach().abs().sum(),
        "clipped_low": masked_sum(surrogate.clipped_low.expand_as(mask), mask),
        "clipped_high": masked_sum(surrogate.clipped_high.expand_as(mask), mask),
    }
    for name in ("kl", "entropy", "correction"):
        value = getattr(inputs, name)
        if value is not None:
            metrics[name] = masked_sum(value, mask)
    return metrics
