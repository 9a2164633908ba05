"""The contract of a reward expert.

An expert scores images against what is known of their prompts. Its core is one function, `score`; the
class around it is a torchmetrics Metric, so that means over a validation run (several batches, several
ranks) need no code of their own. Training reads per-image scores, the metric state serves the logs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from src.values import PromptRecord

Scores = Tensor | tuple[Tensor, Mapping[str, Tensor]]


class RewardError(RuntimeError):
    """An expert failed or gave something that is no score; names the expert and the prompt."""

    def __init__(self, expert: str, problem: str, prompt: str | None = None) -> None:
        self.expert, self.problem, self.prompt = expert, problem, prompt
        where = "" if prompt is None else f" (prompt: {prompt!r})"
        super().__init__(f"reward expert {expert!r}: {problem}{where}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from `args`, which hold the message only; worker processes send them back.
        return type(self), (self.expert, self.problem, self.prompt)


class RewardExpert(Metric):
    """One judge of images; subclasses declare `name` and `score_range` and write `score`.

    Class attributes: `name` is the expert's name in reports and configs; `score_range` the inclusive
    bounds of every score (an instance may know narrower ones); `higher_is_better` its direction (where it
    is False an ensemble subtracts the score).

    `score` must be a function of each row alone: batched scoring equals scoring one by one, the same
    input gives the same scores. The contract tests in tests/rewards hold every expert to this.
    """

    name: ClassVar[str]
    score_range: tuple[float, float]
    higher_is_better: bool = True
    is_differentiable: bool = False
    # With a full state update torchmetrics' forward would run the expert twice.
    full_state_update: bool = False

    score_sum: Tensor
    score_count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("score_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("score_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def applicable(self, record: PromptRecord) -> bool:
        """Whether the expert has anything to say about images of this prompt; a property of the prompt alone."""
        return True

    @abstractmethod
    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Scores:
        """Score N images, each against its own record; all records are applicable ones.

        pixels (N, 3, H, W) float32 in [0, 1], N >= 1, on the expert's device. Returns (N,) float32 within
        `score_range`, alone or with a mapping of further per-image figures, (N,) float32 each, NaN where
        one does not apply to an image.
        """

    def weight_bytes(self) -> int:
        """Bytes of the weights it holds on its device."""
        return sum(x.numel() * x.element_size() for x in (*self.parameters(), *self.buffers()))

    def update(self, pixels: Tensor, records: Sequence[PromptRecord], scores: Tensor | None = None) -> None:
        """Add a batch to the running mean.

        pixels (N, 3, H, W), N records. Where the scores (A,) of the A applicable rows are known already
        they are taken and the expert does not look again.
        """
        if scores is None:
            rows = applicable_rows(self, records)
            if not rows:
                return
            scores, _ = split_scores(self.score(pixels[rows], [records[row] for row in rows]))
        self.score_sum += scores.sum().to(self.score_sum)
        self.score_count += scores.numel()

    def compute(self) -> Tensor:
        """The mean score () over all applicable images so far, on all ranks; NaN where there were none."""
        return self.score_sum / self.score_count


def applicable_rows(expert: RewardExpert, records: Sequence[PromptRecord]) -> list[int]:
    """The places of the records the expert applies to."""
    return [row for row, record in enumerate(records) if expert.applicable(record)]


def split_scores(result: Scores) -> tuple[Tensor, Mapping[str, Tensor]]:
    """What `score` returned as scores and details."""
    return result if isinstance(result, tuple) else (result, {})
