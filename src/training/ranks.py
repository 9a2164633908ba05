"""The processes of a run, for the few places where a plain function needs the others' numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among all: `gather` gives every rank's tensor, (n_r, ...) each, in the order of ranks.

    The first dimensions may differ; all ranks must call.
    """

    rank: int = 0
    gather: Callable[[Tensor], list[Tensor]] = lambda mine: [mine]


ALONE = Ranks()


def current_ranks() -> Ranks:
    """The ranks of the running process group; `ALONE` without one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), _gather)


def _gather(mine: Tensor) -> list[Tensor]:
    """As objects: a few hundred numbers whose count may differ from rank to rank."""
    parts: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
    dist.all_gather_object(parts, mine.cpu())
    return [part.to(mine) for part in parts]
