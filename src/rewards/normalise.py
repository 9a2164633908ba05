"""Normalises each expert's scores before they are combined.

``none``: as they are. ``group``: over the rollouts of one prompt, the first half of GDPO (arXiv 2601.05242, which
then sums the experts and divides the sums by the batch's deviation: that half is an algorithm's,
``algorithm=reinforce_pp``). ``batch``: over the step's own prompts, on all ranks. ``running``: over everything
scored so far in the run. All are (score - mean) / (std + EPSILON), std unbiased; scores that are all equal give
exactly 0, wherever their mean was rounded to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

NORMALISATIONS = ("none", "group", "batch", "running")
EPSILON = 1e-4

# An expert's (mean, std) by column of a report, for those whose scale does not depend on the group.
Scale = Mapping[int, tuple[float, float]]


def by_group(scores: Tensor, applicable: Tensor, group_size: int) -> Tensor:
    """Scores (N,) float32 normalised within each group of `group_size` consecutive rows, of which all or none apply.

    Rows that do not apply come back as 0.
    """
    groups = torch.where(applicable, scores, 0.0).double().view(-1, group_size)
    same = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    mean, std = groups.mean(1, keepdim=True), groups.std(1, keepdim=True)
    return ((groups - mean) / (std + EPSILON)).masked_fill(same, 0.0).flatten().float()


def by_scale(scores: Tensor, mean: float, std: float) -> Tensor:
    """(scores - mean) / (std + EPSILON), (N,) float32; 0 where nothing ever differed."""
    if std == 0:
        return torch.zeros_like(scores)
    return ((scores.double() - mean) / (std + EPSILON)).float()


@dataclass(slots=True)
class RunningStatistics:
    """Count, mean and sum of squared deviations of all values so far, in float64 (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: Tensor) -> None:
        """Take in `values` (A,); the same values in the same calls give the same state, to the last bit."""
        if not values.numel():
            return
        values = values.detach().double().cpu()
        added, mean = values.numel(), float(values.mean())
        squares = 0.0 if bool((values == values[0]).all()) else float((values - mean).square().sum())
        mean = float(values[0]) if squares == 0 else mean
        total, delta = self.count + added, mean - self.mean
        self.squares += squares + delta * delta * self.count * added / total
        self.mean += delta * added / total
        self.count = total

    @property
    def std(self) -> float:
        """The unbiased deviation; 0 of fewer than two values."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])
