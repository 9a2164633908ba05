"""Steps that are not taken: a loss or gradient that is no number, or too large, must not reach the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from src.runs.console import say
from src.training.collect import NonFiniteError


class SkippedSteps:
    """Counts the optimiser steps that were skipped, and ends the run when too many follow each other.

    A skipped step counts as a step: the schedule, validations and checkpoints stay where they were, only the
    weights and the optimiser's moments do not move.
    """

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def taken(self) -> None:
        """A step went through."""
        self.in_a_row = 0

    def skipped(self, reasons: Sequence[str], bound: int) -> None:
        """A step did not; raises NonFiniteError if that makes more than `bound` in a row."""
        self.total += 1
        self.in_a_row += 1
        told = ", ".join(reasons) or "on another rank"
        if self.in_a_row > bound:
            times = "" if self.in_a_row == 1 else f", in {self.in_a_row} steps in a row"
            raise NonFiniteError(f"{told}{times} (optim.max_skipped_steps={bound}); try a lower optim.lr")
        say(f"step skipped: {told} ({self.in_a_row} in a row, the run ends after {bound})")
