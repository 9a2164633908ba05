"""Loss metrics that add up: exactly the same figure for any split into microbatches, levels and ranks.

A metric is a detached 0-dim tensor. It is a **sum over the counted tokens**, except for the names in
`MAXIMA`, which are maxima over them. ``tokens`` is the number of counted tokens; :func:`merge` joins the
metrics of two parts, and :func:`means` turns the joined sums into what a log shows. Over ranks: all-reduce
with MAX for `MAXIMA` and SUM for the rest, between merge and means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

TOKENS = "tokens"
MAXIMA = frozenset({"ratio_deviation_max", "mismatch_max"})


def masked_sum(value: Tensor, mask: Tensor) -> Tensor:
    """Sum (0-dim, detached, at least float32) of value (N, T) over mask; NaN outside of it does not count."""
    value = value.detach()
    if not value.is_floating_point():
        value = value.float()
    return value.masked_fill(~mask, 0).sum()


def masked_max(value: Tensor, mask: Tensor) -> Tensor:
    """Maximum (0-dim, detached) of the non-negative value (N, T) over mask; 0 where nothing counts."""
    value = value.detach().masked_fill(~mask, 0)
    return value.max() if value.numel() else value.sum()


def merge(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of all `parts` together. A name missing in some parts counts there as absent, not as 0."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value
            elif name in MAXIMA:
                merged[name] = torch.maximum(merged[name], value)
            else:
                merged[name] = merged[name] + value
    return merged


def means(merged: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums as means over the tokens; ``tokens`` and maxima as they are. No tokens: sums give NaN."""
    tokens = float(merged[TOKENS])
    return {
        name: float(value) if name == TOKENS or name in MAXIMA else (float(value) / tokens if tokens else float("nan"))
        for name, value in merged.items()
    }


def sampler_mismatch(rollout_logp: Tensor, logp: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far training's log-probs lie from the sampler's, for the same weights and tokens; all (N, T).

    mismatch: |logp - rollout_logp|; mismatch_max: its maximum; mismatch_kl: the k3 estimate of
    KL(sampler || training). All are 0 where sampler and training compute alike; what remains is numerics
    (bf16, other kernels), which makes "on-policy" data slightly off-policy.
    """
    difference = (logp.detach() - rollout_logp).masked_fill(~mask, 0)
    distance = difference.abs()
    return {
        TOKENS: mask.sum().to(distance.dtype),
        "mismatch": distance.sum(),
        "mismatch_max": masked_max(distance, mask),
        "mismatch_kl": (torch.expm1(difference) - difference).sum(),
    }
