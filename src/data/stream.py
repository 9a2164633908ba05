"""The training prompts as an endless stream whose every batch is a pure function of its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import count

from src.values import PromptBatch, PromptRecord


@lru_cache(maxsize=8)
def epoch_permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order (size,) of the prompts in an epoch.

    Sorted by a hash of (seed, epoch, index) and not drawn from a generator, so that no library's version
    changes it: a run can be continued elsewhere.
    """

    def key(index: int) -> bytes:
        return sha256(f"{seed}/{epoch}/{index}".encode()).digest()

    return tuple(sorted(range(size), key=key))


class PromptStream:
    """One rank's share of the global prompt batches, without an end.

    All ranks together walk through each epoch's permutation; batch `step` holds the places
    ``step*prompts_per_step ...`` of the epochs laid end to end, so a batch may straddle epochs, and rank r
    takes the r-th part of it. Iterating starts at `start_step`, which may be set to continue a run.

    records: at least one. prompts_per_step: over all ranks, divisible by `world_size`. Raises ValueError
    for a number that does not fit.
    """

    def __init__(
        self, records: Sequence[PromptRecord], prompts_per_step: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if not records:
            raise ValueError("PromptStream: no records")
        if not 0 <= rank < world_size:
            raise ValueError(f"PromptStream: rank {rank} of {world_size}")
        if prompts_per_step < 1 or prompts_per_step % world_size:
            raise ValueError(
                f"rollout.prompts_per_step={prompts_per_step} (over all ranks): expected a positive multiple of"
                f" the number of ranks, {world_size}"
            )
        self.records = tuple(records)
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = 0

    def batch(self, step: int) -> PromptBatch:
        """This rank's part of global batch `step` >= 0."""
        if step < 0:
            raise ValueError(f"PromptStream: step {step}, expected >= 0")
        share = self.prompts_per_step // self.world_size
        positions = tuple(range(self.rank * share, (self.rank + 1) * share))
        first = step * self.prompts_per_step
        return PromptBatch(tuple(self._record(first + position) for position in positions), positions, step)

    def __iter__(self) -> Iterator[PromptBatch]:
        return map(self.batch, count(self.start_step))

    def _record(self, place: int) -> PromptRecord:
        """The record at a place of the epochs laid end to end."""
        epoch, index = divmod(place, len(self.records))
        return self.records[epoch_permutation(len(self.records), self.seed, epoch)[index]]
