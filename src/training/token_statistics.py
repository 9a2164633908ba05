"""A level's per-token statistics, under whichever weights, with the head chosen once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels import Operations, TokenStatistics
from src.policies.base import Decoder
from src.values import IMAGE, LevelOutput, ReferenceRows, TokenContext, TokenLevel


def level_statistics(
    operations: Operations,
    output: LevelOutput,
    level: TokenLevel,
    guided: bool,
    *,
    kl: str | None = None,
    entropy: bool = False,
    entropy_grad: bool = False,
) -> TokenStatistics:
    """Statistics of the level's tokens under `output`.

    guided: of the distribution that was sampled from; else of the conditional branch alone. The guided ones
    need ``level.unconditional_features`` of the same weights; no gradient goes into that branch. The KL is
    left out where the level has no reference.
    """
    return operations.head_statistics(
        **head_arguments(output, level, guided),
        kl=kl if has_reference(level) else None,
        entropy=entropy,
        entropy_grad=entropy_grad,
    )


def has_reference(level: TokenLevel) -> bool:
    """Whether the level knows anything of the reference."""
    return level.ref_logp is not None or level.reference is not None


def head_arguments(output: LevelOutput, level: TokenLevel, guided: bool) -> dict[str, Any]:
    """What every operation from hidden states takes of a level."""
    mix = guided and level.sampling.guided
    return {
        "features": output.features,
        "weight": output.head.weight,
        "bias": output.head.bias,
        "ids": level.ids,
        "temperature": level.sampling.temperature,
        "unconditional_features": level.unconditional_features if mix else None,
        "guidance_scale": level.sampling.guidance_scale if mix else 1.0,
        "ref_logp": level.ref_logp,
        **({} if level.reference is None else _reference_arguments(level.reference)),
    }


def _reference_arguments(rows: ReferenceRows) -> dict[str, Tensor | None]:
    return {
        "ref_features": rows.features,
        "ref_weight": rows.head.weight,
        "ref_bias": rows.head.bias,
        "ref_unconditional_features": rows.unconditional_features,
    }


def score_level(
    operations: Operations, decoder: Decoder, name: str, level: TokenLevel, guided: bool, rows: int | None = None
) -> TokenStatistics:
    """Log-probs of a level's tokens under the weights of `decoder`, the guidance branch included. No graph.

    rows: at most so many rollouts are computed at a time, head included; None: all at once.
    """
    columns: list[TokenStatistics] = []
    with torch.no_grad():
        for part in row_chunks(level, rows):
            found = level_rows(decoder, name, part, guided)
            output = LevelOutput(found.features, found.head)
            bare = replace(part, unconditional_features=found.unconditional_features, ref_logp=None, reference=None)
            columns.append(level_statistics(operations, output, bare, guided))
    return joined_statistics(columns)


def row_chunks(level: TokenLevel, rows: int | None) -> Iterator[TokenLevel]:
    """The level in parts of at most `rows` rollouts, in order; None: the level itself."""
    if rows is None or rows >= len(level):
        yield level
        return
    for start in range(0, len(level), rows):
        yield level.rows(slice(start, min(start + rows, len(level))))


def joined_statistics(parts: Sequence[TokenStatistics]) -> TokenStatistics:
    """The statistics of all parts, one after the other."""
    logp, *others = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
    assert logp is not None
    return TokenStatistics(logp, *others)


def level_rows(decoder: Decoder, name: str, level: TokenLevel, guided: bool, rows: int | None = None) -> ReferenceRows:
    """What the head of `decoder` reads at every token of a level, in the guidance branch too. No graph."""
    branch = None
    if guided and level.sampling.guided and level.unconditional is not None:
        branch = evaluated(decoder, name, level.unconditional, level.ids, rows)
    return ReferenceRows(evaluated(decoder, name, level.context, level.ids, rows), decoder.head(name), branch)


@torch.no_grad()
def evaluated(decoder: Decoder, name: str, context: TokenContext, ids: Tensor, rows: int | None) -> Tensor:
    """``decoder.evaluate`` of at most `rows` rows at a time; features (N, T, F) of all."""
    if rows is None or rows >= len(ids):
        return decoder.evaluate(name, context, ids)
    chosen = [slice(start, start + rows) for start in range(0, len(ids), rows)]
    return torch.cat([decoder.evaluate(name, context.rows(part), ids[part]) for part in chosen])


def sampled_logp(name: str, level: TokenLevel, guided: bool) -> Tensor:
    """The sampler's own log-probs (N, T) of the distribution that is trained."""
    return level.rollout_logp if guided or name != IMAGE else level.conditional_logp
