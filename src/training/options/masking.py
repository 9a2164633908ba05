"""Which tokens are learned from: none of groups without signal, and of plans that never end none if so set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from src.algorithms.plan_length import mask_unfinished
from src.values import PLAN, TokenLevel


def counted(
    levels: Mapping[str, TokenLevel], ended: Tensor, kept: Tensor, unfinished_plans_too: bool
) -> dict[str, TokenLevel]:
    """The levels with the masks of what is learned from.

    ended (N,) bool: the plans that ended. kept (N,) bool: the rollouts of groups that teach. Groups that were dropped
    stay as masked rows: so all ranks go on in step, however many groups each has left.
    """
    chosen = dict(levels)
    if not unfinished_plans_too:
        chosen[PLAN] = replace(chosen[PLAN], mask=mask_unfinished(chosen[PLAN].mask, ended))
    if not kept.all():
        chosen = {name: replace(level, mask=level.mask & kept[:, None]) for name, level in chosen.items()}
    return chosen
