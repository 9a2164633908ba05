"""What plans cost by their length: taken off the reward of those that never end, or come near the cap."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from src.algorithms.plan_length import overlong_penalty, unfinished_penalty
from src.config.schema import Config
from src.rollout.levels import Rollouts
from src.values import PLAN, RewardReport


@dataclass(frozen=True, slots=True)
class PlanPenalties:
    """What is taken off the reward: `unfinished` for a plan that never ends, `overlong` at the cap.

    The latter starts `margin` tokens before `max_tokens` and grows linearly (DAPO, arXiv 2503.14476, eq. 13).
    """

    max_tokens: int
    unfinished: float = 0.0
    overlong: float = 0.0
    margin: int = 1

    @classmethod
    def of(cls, config: Config) -> PlanPenalties:
        """The penalties of a run."""
        variant = config.algorithm
        return cls(
            config.rollout.max_plan_tokens,
            variant.unfinished_plan_penalty,
            variant.overlong_penalty,
            variant.overlong_margin or 1,
        )

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
