"""Rollouts of an evaluation, made by hand."""

from __future__ import annotations

import torch

from src.evaluate.samples import Drawn
from src.training.held_out import Sample


def drawn(
    index: int,
    number: int,
    reward: float | None,
    plan: str = "a b",
    /,
    kind: str = "one",
    embedding: tuple[float, ...] = (1.0, 0.0),
    ended: bool = True,
    **details: float,
) -> Drawn:
    """Sample `number` of prompt `index`; a reward of None is that of a prompt nothing is known of."""
    scores = {} if reward is None else {"judge": reward}
    sample = Sample(index, kind, f"prompt {index}", plan, ended, reward, scores, details)
    return Drawn(sample, number, len(plan.split()), f"images/m/{index}_{number}.png", torch.tensor(embedding))
