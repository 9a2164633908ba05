"""Rows of a level, split so that they fit the device, and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.policies.base import CapturableDecoder, Decoder
from src.values import TokenContext, TokenLevel


def row_limit(decoder: Decoder, level: str, max_rows: int | None, places: int, branches: int) -> int | float:
    """How many rollouts to decode at once: `max_rows`, or else what the decoder's device has memory for.

    places: tokens a row, context included. branches: rows of the cache a rollout takes (guidance: 2).
    """
    if max_rows is not None:
        return max_rows
    fitting = decoder.rows_that_fit(level, places) if isinstance(decoder, CapturableDecoder) else None
    return float("inf") if fitting is None else max(1, fitting // branches)


def spans(rows: int, limit: int | float) -> list[slice]:
    """Consecutive parts of at most `limit` rows, as few as possible and as equal as possible (at most one apart)."""
    parts = -(-rows // int(min(limit, rows)))
    small, larger = divmod(rows, parts)
    ends = [part * small + min(part, larger) for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def join_levels(
    levels: Sequence[TokenLevel],
    context: TokenContext | None = None,
    unconditional: TokenContext | None = None,
    fill_id: int = 0,
) -> TokenLevel:
    """Freshly sampled levels as one, contexts padded on the left and tokens (with `fill_id`) on the right.

    The padding is off in every mask. context and unconditional: of all rows, where they are at hand. Raises
    ValueError for levels sampled differently, and for log-probs of training or the reference, which belong to a
    level that is complete.
    """
    first = levels[0]
    if any(level.sampling != first.sampling for level in levels):
        raise ValueError("levels to be joined were sampled with different settings")
    if any(value is not None for level in levels for value in (level.old_logp, level.ref_logp, level.reference)):
        raise ValueError("levels to be joined have been scored already")
    longest = max(level.ids.shape[1] for level in levels)

    def tokens(name: str, fill: int = 0) -> Tensor:
        values = [getattr(level, name) for level in levels]
        return torch.cat([pad(value, (0, longest - value.shape[1]), value=fill) for value in values])

    branches = [level.unconditional for level in levels if level.unconditional is not None]
    features = [level.unconditional_features for level in levels if level.unconditional_features is not None]
    return TokenLevel(
        context=context or join_contexts([level.context for level in levels]),
        ids=tokens("ids", fill_id),
        mask=tokens("mask"),
        rollout_logp=tokens("rollout_logp"),
        conditional_logp=tokens("conditional_logp"),
        sampling=first.sampling,
        unconditional=unconditional or (join_contexts(branches) if branches else None),
        unconditional_features=(
            torch.cat([pad(value, (0, 0, 0, longest - value.shape[1])) for value in features]) if features else None
        ),
    )


def join_contexts(contexts: Sequence[TokenContext]) -> TokenContext:
    """Contexts one after the other, padded on the left to the longest."""
    width = max(context.ids.shape[1] for context in contexts)

    def widened(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(value, (width - value.shape[1], 0)) for value in values])

    return TokenContext(widened([context.ids for context in contexts]), widened([context.mask for context in contexts]))
