"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups that teach nothing give way to other prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from src.algorithms import without_signal
from src.rollout.noise import RolloutKey, group_keys
from src.training.groups import Groups, put_in
from src.values import PromptBatch, PromptRecord

# (step, attempt, positions) -> one further prompt for each position; attempts count from 1.
RefillSource = Callable[[int, int, Sequence[int]], Sequence[PromptRecord]]
# (prompts, keys of their N rollouts) -> the groups, rolled out and scored.
SampleGroups = Callable[[Sequence[PromptRecord], Sequence[RolloutKey]], Groups]


def groups_with_signal(
    first: Groups,
    batch: PromptBatch,
    seed: int,
    rounds: int,
    tolerance: float,
    refills: RefillSource | None,
    sample: SampleGroups,
) -> tuple[Groups, Tensor, dict[str, float]]:
    """The groups to learn from, which of their rollouts count (N,), and figures for the logs; see `refill`.

    Raises:
        ValueError: without a source of further prompts.
    """
    if refills is None:
        raise ValueError("dynamic sampling: collect() was given no source of further prompts (refills)")
    group_size = len(first.report.total) // len(first.records)
    done = refill(first, batch, group_size, seed, rounds, tolerance, refills, sample)
    dropped = float((done.groups.report.judged & ~done.kept).sum()) / group_size
    figures = {"refill/rounds": float(done.rounds), "refill/groups": float(done.replaced), "refill/dropped": dropped}
    return done.groups, done.kept, figures


@dataclass(frozen=True, slots=True)
class Refilled:
    """What dynamic sampling made of a batch: its groups, how many rounds and groups it took, which teach now (N,)."""

    groups: Groups
    rounds: int
    replaced: int
    kept: Tensor


def refill(
    groups: Groups,
    batch: PromptBatch,
    group_size: int,
    seed: int,
    rounds: int,
    tolerance: float,
    source: RefillSource,
    sample: SampleGroups,
) -> Refilled:
    """Replace groups without signal or reward by groups of other prompts, at most `rounds` times (DAPO, section 3.2).

    Each place of the global batch is refilled by itself, prompt and noise keyed by (step, attempt, place): no
    rank waits for another, any number of ranks gets the same groups, and a resumed run gets them again. Groups
    still without signal at the end are not `kept`.
    """
    used = replaced = 0
    for attempt in range(1, rounds + 1):
        places = (~teaching(groups.report.total, group_size, tolerance)).nonzero().flatten().tolist()
        if not places:
            break
        positions = [batch.positions[place] for place in places]
        records = source(batch.step, attempt, positions)
        keys = group_keys(seed, f"train/refill{attempt}", batch.step, positions, group_size)
        groups = put_in(groups, places, sample(records, keys), group_size)
        used, replaced = attempt, replaced + len(places)
    kept = teaching(groups.report.total, group_size, tolerance)
    return Refilled(groups, used, replaced, kept.repeat_interleave(group_size))


def teaching(total: Tensor, group_size: int, tolerance: float = 0.0) -> Tensor:
    """(B,) bool: the groups whose rewards differ by more than `tolerance`; those without a reward are not among them.

    total (N,), NaN in all rows of a group that no expert could judge.
    """
    judged = ~total.view(-1, group_size).isnan().any(1)
    kept = judged.clone()
    if judged.any():
        kept[judged] = ~without_signal(total.view(-1, group_size)[judged].flatten(), group_size, tolerance)
    return kept


def keyed_records(
    records: Sequence[PromptRecord], seed: int, step: int, attempt: int, positions: Sequence[int]
) -> list[PromptRecord]:
    """One of `records` for each position, drawn uniformly by a hash of where it will stand (a `RefillSource`)."""

    def place(position: int) -> int:
        text = f"{seed}|refill|{step}|{attempt}|{position}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % len(records)

    return [records[place(position)] for position in positions]
