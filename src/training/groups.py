"""Groups of rollouts, scored; and dynamic sampling, which replaces those that teach nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.algorithms import without_signal
from src.algorithms.plan_length import overlong_penalty, unfinished_penalty
from src.rollout.join import join, select
from src.rollout.levels import Rollouts
from src.rollout.noise import RolloutKey, group_keys
from src.values import PLAN, PromptBatch, PromptRecord, RewardReport

# (step, attempt, positions) -> one further prompt for each position; attempts count from 1.
RefillSource = Callable[[int, int, Sequence[int]], Sequence[PromptRecord]]
# (prompts, keys of their N rollouts) -> the groups, rolled out and scored.
SampleGroups = Callable[[Sequence[PromptRecord], Sequence[RolloutKey]], "Groups"]


@dataclass(frozen=True, slots=True)
class Groups:
    """B prompts with N = B * G scored rollouts; prompt-major.

    report: its total includes the penalties on plans; bare (N,) is the total without them.
    """

    records: tuple[PromptRecord, ...]
    rollouts: Rollouts
    report: RewardReport
    bare: Tensor


@dataclass(frozen=True, slots=True)
class PlanPenalties:
    """What is taken off the reward: `unfinished` for a plan that never ends, `overlong` at the cap.

    The latter starts `margin` tokens before `max_tokens` and grows linearly (DAPO, arXiv 2503.14476, eq. 13).
    """

    max_tokens: int
    unfinished: float = 0.0
    overlong: float = 0.0
    margin: int = 1

    def apply(self, report: RewardReport, rollouts: Rollouts) -> RewardReport:
        """The report with the penalties in its total."""
        report = penalise_unfinished(report, rollouts.ended, self.unfinished)
        if not self.overlong:
            return report
        lengths = rollouts.levels[PLAN].mask.sum(1)
        return _added(report, self.overlong * overlong_penalty(lengths, self.max_tokens, self.margin))


def penalise_unfinished(report: RewardReport, ended: Tensor, penalty: float) -> RewardReport:
    """The report with `penalty` taken off the reward of every plan that did not end."""
    return _added(report, unfinished_penalty(ended, penalty)) if penalty else report


def _added(report: RewardReport, penalty: Tensor) -> RewardReport:
    """The report with `penalty` (N,) added to the reward, to the one that trains and to the raw one."""
    penalty = penalty.to(report.total)
    return replace(report, total=report.total + penalty, raw=report.raw + penalty)


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


def put_in(groups: Groups, places: Sequence[int], others: Groups, group_size: int) -> Groups:
    """`groups` with those at `places` replaced by `others`, one for each place."""
    source = list(range(len(groups.records)))
    for offset, place in enumerate(places):
        source[place] = len(groups.records) + offset
    device = groups.report.total.device
    chosen = torch.tensor([g * group_size + i for g in source for i in range(group_size)], device=device)
    records = (*groups.records, *others.records)
    return Groups(
        tuple(records[g] for g in source),
        select(join([groups.rollouts, others.rollouts]), chosen),
        joined_reports([groups.report, others.report]).rows(chosen),
        torch.cat([groups.bare, others.bare])[chosen],
    )


def joined_reports(reports: Sequence[RewardReport]) -> RewardReport:
    """Reports of the same experts one after the other; a detail one of them lacks is NaN there."""
    names = dict.fromkeys(name for report in reports for name in report.details)

    def detail(report: RewardReport, name: str) -> Tensor:
        return report.details.get(name, torch.full_like(report.total, float("nan")))

    return RewardReport(
        reports[0].names,
        torch.cat([report.scores for report in reports]),
        torch.cat([report.applicable for report in reports]),
        torch.cat([report.total for report in reports]),
        {name: torch.cat([detail(report, name) for report in reports]) for name in names},
        torch.cat([report.raw for report in reports]),
        torch.cat([report.failed for report in reports]),
    )


def keyed_records(
    records: Sequence[PromptRecord], seed: int, step: int, attempt: int, positions: Sequence[int]
) -> list[PromptRecord]:
    """One of `records` for each position, drawn uniformly by a hash of where it will stand (a `RefillSource`)."""

    def place(position: int) -> int:
        text = f"{seed}|refill|{step}|{attempt}|{position}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % len(records)

    return [records[place(position)] for position in positions]
