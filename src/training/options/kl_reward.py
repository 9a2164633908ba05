"""The KL to the reference in the reward instead of the loss: one number a rollout, taken off before groups compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kernels import Operations, TokenStatistics
from src.algorithms.kl import kl_estimate, penalised_reward
from src.config.schema import AlgorithmConfig
from src.policies.base import Decoder
from src.training.token_statistics import joined_statistics, level_statistics, row_chunks, sampled_logp
from src.values import LevelOutput, TokenLevel


def kl_penalty(
    decoder: Decoder,
    operations: Operations,
    levels: Mapping[str, TokenLevel],
    settings: AlgorithmConfig,
    score_rows: int | None,
) -> tuple[dict[str, TokenLevel], Tensor]:
    """What the KL takes off each reward, (N,) float32: beta times its sum over the tokens of both levels.

    score_rows: as in `collect`. Also returns the levels, with `ref_logp` in any case:
    in the update the KL is for the logs only.
    """
    kl, guided = settings.kl, settings.guided
    scored, kls = dict(levels), []
    for name, level in levels.items():
        if level.reference is not None:
            statistics = _exact_statistics(decoder, operations, name, level, kl, guided, score_rows)
            assert statistics.kl is not None
            assert statistics.log_ratio is not None
            scored[name] = replace(level, reference=None, ref_logp=statistics.logp + statistics.log_ratio)
            kls.append((statistics.kl, level.mask))
        else:
            assert level.ref_logp is not None
            log_ratio = level.ref_logp - sampled_logp(name, level, guided)
            kls.append((kl_estimate(log_ratio, kl), level.mask))
    nothing = torch.zeros_like(kls[0][0][:, 0])
    return scored, -penalised_reward(nothing, kls, settings.reward_beta).float()


@torch.no_grad()
def _exact_statistics(
    decoder: Decoder,
    operations: Operations,
    name: str,
    level: TokenLevel,
    kl: str,
    guided: bool,
    score_rows: int | None,
) -> TokenStatistics:
    """Statistics of a level under `decoder`, its KL over the whole vocabulary, `score_rows` rollouts at a time."""
    parts = []
    for part in row_chunks(level, score_rows):
        output = LevelOutput(decoder.evaluate(name, part.context, part.ids), decoder.head(name))
        parts.append(level_statistics(operations, output, part, guided, kl=kl))
    return joined_statistics(parts)
