"""The processes of a run, for the few places where a plain function needs the others' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among all: `gather` gives every rank's tensor, (n_r, ...) each, in the order of ranks.

    The first dimensions may differ; all ranks must call. `gather_named` does the same to several tensors at once,
    of which a rank may lack some; they come back on the CPU where there is more than one rank.
    """

    rank: int = 0
    gather: Callable[[Tensor], list[Tensor]] = lambda mine: [mine]
    gather_named: Callable[[Mapping[str, Tensor]], list[Mapping[str, Tensor]]] = lambda mine: [mine]


ALONE = Ranks()


def current_ranks() -> Ranks:
    """The ranks of the running process group; `ALONE` without one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), _gather, _gather_named)


def _gather(mine: Tensor) -> list[Tensor]:
    return [part[""].to(mine) for part in _gather_named({"": mine})]


def _gather_named(mine: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """As objects: a few hundred numbers whose names and counts may differ from rank to rank."""
    parts: list[Mapping[str, Tensor]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, {name: value.cpu() for name, value in mine.items()})
    return parts


def lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; that one's message says why."""
    gone = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "Connection refused")
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and any(words in str(error) for words in gone))
