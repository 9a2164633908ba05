"""Experts' scores of pictures as plain entries, for files and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from src.rewards.ensemble import RewardEnsemble
    from src.values import PromptRecord

Entry = dict[str, Any]


def scores(rewards: RewardEnsemble, pixels: Tensor, records: Sequence[PromptRecord]) -> list[Entry]:
    """For each picture ``scores`` by expert, ``reward`` and ``details``; no ``reward`` where no expert applies.

    Raises:
        UserError: for an expert that fails.
    """
    from src.rewards.base import RewardError

    try:
        report = rewards(pixels, records, every_prompt=False)
    except RewardError as error:
        raise UserError(str(error)) from error
    result: list[Entry] = []
    for row in range(len(records)):
        entry: Entry = {
            "scores": {
                name: round(float(report.scores[row, column]), 6)
                for column, name in enumerate(report.names)
                if bool(report.applicable[row, column])
            }
        }
        if bool(report.judged[row]):
            entry["reward"] = round(float(report.total[row]), 6)
            entry["details"] = {
                name: round(float(value[row]), 6)
                for name, value in report.details.items()
                if not bool(value[row].isnan())
            }
        result.append(entry)
    return result
