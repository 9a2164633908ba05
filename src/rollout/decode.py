"""The decode loop both levels share."""

from __future__ import annotations

import torch
from torch import Tensor

from src.policies.base import Decoder
from src.rollout.sampling import draw
from src.values import Sampling, TokenContext, TokenLevel


@torch.no_grad()
def decode(
    decoder: Decoder,
    level: str,
    context: TokenContext,
    noise: Tensor,
    sampling: Sampling,
    unconditional: TokenContext | None = None,
    end_id: int | None = None,
) -> TokenLevel:
    """Sample up to T = noise.shape[1] tokens a row.

    Args:
        context: (N, C), what is continued.
        noise: uniforms (N, T) float64.
        unconditional: context of the guidance branch, needed if `sampling` is guided.
        end_id: the token that ends a row (counted in the mask); None: every row gets T tokens.

    Returns:
        The level; where rows end early it is cut to the longest row. Tokens behind a row's end are `end_id`.
    """
    rows, steps = noise.shape
    guided = sampling.guided
    if guided and unconditional is None:
        raise ValueError(f"{level}: guidance_scale={sampling.guidance_scale} needs an unconditional context")
    noise = noise.to(context.ids.device)
    head = decoder.head(level)
    state, features = decoder.start(level, _stacked(context, unconditional) if guided else context, steps)
    running = torch.ones(rows, dtype=torch.bool, device=context.ids.device)
    ids, mask, logps, conditional_logps, unconditional_features = [], [], [], [], []
    for step in range(steps):
        logits = head(features)
        chosen = draw(logits[:rows], logits[rows:] if guided else None, noise[:, step], sampling)
        if guided:
            unconditional_features.append(features[rows:])
        token = chosen.ids
        if end_id is not None:
            token = torch.where(running, token, end_id)
        ids.append(token)
        mask.append(running)
        logps.append(chosen.logp)
        conditional_logps.append(chosen.conditional_logp)
        if end_id is not None:
            running = running & (token != end_id)
            if not bool(running.any()):
                break
        if step + 1 < steps:
            features = decoder.advance(state, torch.cat([token, token]) if guided else token)
    counts = torch.stack(mask, 1)
    return TokenLevel(
        context=context,
        ids=torch.stack(ids, 1),
        mask=counts,
        rollout_logp=torch.stack(logps, 1).masked_fill(~counts, 0.0),
        conditional_logp=torch.stack(conditional_logps, 1).masked_fill(~counts, 0.0),
        sampling=sampling,
        unconditional=unconditional if guided else None,
        unconditional_features=torch.stack(unconditional_features, 1) if guided else None,
    )


def _stacked(context: TokenContext, unconditional: TokenContext | None) -> TokenContext:
    assert unconditional is not None
    return TokenContext(
        torch.cat([context.ids, unconditional.ids]),
        torch.cat([context.mask, unconditional.mask]),
    )
