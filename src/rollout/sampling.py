"""From logits and a uniform to a token: guidance, temperature, inverse CDF."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.values import Sampling


@dataclass(frozen=True, slots=True)
class Draw:
    """One token a row: ids (N,) int64, logp and conditional_logp (N,) float32."""

    ids: Tensor
    logp: Tensor
    conditional_logp: Tensor


def draw(logits: Tensor, unconditional: Tensor | None, uniform: Tensor, sampling: Sampling) -> Draw:
    """Sample from ``softmax((u + w*(c - u)) / temperature)`` by inverse CDF.

    Args:
        logits: conditional logits c, (N, V).
        unconditional: unconditional logits u, (N, V); None without guidance.
        uniform: (N,) float64 in [0, 1).

    A token of probability zero is never drawn. The whole vocabulary takes part: no top-k, no top-p.
    """
    conditional = logits.float() / sampling.temperature
    if unconditional is None:
        mixed = conditional
    else:
        base = unconditional.float() / sampling.temperature
        mixed = torch.lerp(base, conditional, sampling.guidance_scale)
    logp = mixed.log_softmax(-1)
    cumulative = logp.exp().cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, target, right=True).clamp_max_(logits.shape[-1] - 1)
    chosen = logp.gather(1, ids).squeeze(1)
    if unconditional is None:
        return Draw(ids.squeeze(1), chosen, chosen)
    plain = conditional.gather(1, ids).squeeze(1) - conditional.logsumexp(-1)
    return Draw(ids.squeeze(1), chosen, plain)
