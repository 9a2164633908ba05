"""Rollouts of several calls as one: rows put together and chosen, as if they had been sampled side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.rollout.levels import Rollouts
from src.values import TokenContext, TokenLevel


def select(rollouts: Rollouts, index: Tensor) -> Rollouts:
    """The rollouts at `index` (M,) int64, in that order."""
    return Rollouts(
        {name: level.rows(index) for name, level in rollouts.levels.items()},
        [rollouts.plans[row] for row in index.tolist()],
        rollouts.pixels[index],
        rollouts.ended[index],
    )


def join(parts: Sequence[Rollouts]) -> Rollouts:
    """All rollouts of `parts`, one after the other; see `join_levels`."""
    return Rollouts(
        {name: join_levels([part.levels[name] for part in parts]) for name in parts[0].levels},
        [plan for part in parts for plan in part.plans],
        torch.cat([part.pixels for part in parts]),
        torch.cat([part.ended for part in parts]),
    )


def join_levels(levels: Sequence[TokenLevel]) -> TokenLevel:
    """Freshly sampled levels as one, contexts padded on the left and tokens on the right to the longest.

    The padding is off in every mask. Raises ValueError for levels sampled differently, and for log-probs of
    training or the reference, which belong to a level that is complete.
    """
    first = levels[0]
    if any(level.sampling != first.sampling for level in levels):
        raise ValueError("levels to be joined were sampled with different settings")
    if any(value is not None for level in levels for value in (level.old_logp, level.ref_logp, level.reference)):
        raise ValueError("levels to be joined have been scored already")
    longest = max(level.ids.shape[1] for level in levels)

    def tokens(name: str) -> Tensor:
        values = [getattr(level, name) for level in levels]
        return torch.cat([pad(value, (0, longest - value.shape[1])) for value in values])

    unconditional = [level.unconditional for level in levels if level.unconditional is not None]
    features = [level.unconditional_features for level in levels if level.unconditional_features is not None]
    return TokenLevel(
        context=join_contexts([level.context for level in levels]),
        ids=tokens("ids"),
        mask=tokens("mask"),
        rollout_logp=tokens("rollout_logp"),
        conditional_logp=tokens("conditional_logp"),
        sampling=first.sampling,
        unconditional=join_contexts(unconditional) if unconditional else None,
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
