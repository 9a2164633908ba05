"""Rollouts of several calls as one: rows put together and chosen, as if they had been sampled side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.rollout.levels import Rollouts
from src.rollout.rows import join_levels


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
