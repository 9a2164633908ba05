"""Groups of rollouts, scored, as a step handles them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.rollout.join import join, select
from src.rollout.levels import Rollouts
from src.values import PromptRecord, RewardReport


@dataclass(frozen=True, slots=True)
class Groups:
    """B prompts with N = B * G scored rollouts; prompt-major.

    report: its total includes the penalties on plans; bare (N,) is the total without them.
    """

    records: tuple[PromptRecord, ...]
    rollouts: Rollouts
    report: RewardReport
    bare: Tensor


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
