"""A level's per-token statistics, under whichever weights, with the head chosen once."""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels import Operations, TokenStatistics
from src.policies.base import Decoder
from src.values import LevelOutput, TokenLevel


def level_statistics(
    operations: Operations,
    output: LevelOutput,
    level: TokenLevel,
    guided: bool,
    *,
    kl: str | None = None,
    entropy: bool = False,
) -> TokenStatistics:
    """Statistics of the level's tokens under `output`.

    guided: of the distribution that was sampled from; else of the conditional branch alone. The guided ones
    need ``level.unconditional_features`` of the same weights; no gradient goes into that branch.
    """
    mix = guided and level.sampling.guided
    return operations.head_statistics(
        output.features,
        output.head.weight,
        output.head.bias,
        level.ids,
        temperature=level.sampling.temperature,
        unconditional_features=level.unconditional_features if mix else None,
        guidance_scale=level.sampling.guidance_scale if mix else 1.0,
        ref_logp=level.ref_logp,
        kl=kl if level.ref_logp is not None else None,
        entropy=entropy,
        entropy_grad=False,
    )


def score_level(
    operations: Operations, decoder: Decoder, name: str, level: TokenLevel, guided: bool
) -> TokenStatistics:
    """Log-probs of a level's tokens under the weights of `decoder`, the guidance branch included. No graph."""
    with torch.no_grad():
        head = decoder.head(name)
        branch = None
        if guided and level.sampling.guided and level.unconditional is not None:
            branch = decoder.evaluate(name, level.unconditional, level.ids)
        output = LevelOutput(decoder.evaluate(name, level.context, level.ids), head)
        bare = replace(level, unconditional_features=branch, ref_logp=None)
        return level_statistics(operations, output, bare, guided)
