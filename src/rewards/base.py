"""The contract of a reward expert.

An expert scores images against the records of their prompts. Its core is one function, `score`; the class around it
is a torchmetrics Metric, so means over a validation run (several batches, several ranks) need no extra code. Training
reads per-image scores; the metric state is for the logs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from src.values import PromptRecord

# A score may leave its declared range by rounding (a cosine of 1 + 1e-7), never by more.
RANGE_TOLERANCE = 1e-5
# Half a level of an 8-bit picture: allows for rounding in the decoder, and is too little for any other scale.
PIXEL_TOLERANCE = 0.5 / 255
Scores = Tensor | tuple[Tensor, Mapping[str, Tensor]]


class RewardError(RuntimeError):
    """An expert failed or returned an invalid score; names the expert and the prompt."""

    def __init__(self, expert: str, problem: str, prompt: str | None = None) -> None:
        self.expert, self.problem, self.prompt = expert, problem, prompt
        where = "" if prompt is None else f" (prompt: {prompt!r})"
        super().__init__(f"reward expert {expert!r}: {problem}{where}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from `args`, which hold the message only; worker processes send them back.
        return type(self), (self.expert, self.problem, self.prompt)


class WrongInput(RewardError, ValueError):
    """The input is not pictures in [0, 1] with their records; says what is wrong."""


class RewardExpert(Metric):
    """One judge of images; subclasses declare `name` and `score_range` and write `score`.

    Class attributes: `name` is the expert's name in reports and configs; `score_range` the inclusive
    bounds of every score (an instance may know narrower ones); `higher_is_better` its direction (where it
    is False an ensemble subtracts the score). If `applicable` is not always true, `needs` names the fields of a
    prompt file that a record must have for it.

    `score` must be a function of each row alone: batched scoring equals scoring one by one, the same
    input gives the same scores. The contract tests in tests/rewards hold every expert to this.
    """

    name: ClassVar[str]
    score_range: tuple[float, float]
    higher_is_better: bool = True
    needs: str = ""
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
        """Whether the expert can judge images of this prompt; a property of the prompt alone."""
        return True

    def check(self, record: PromptRecord) -> None:
        """Raise ValueError if the expert cannot read the record's metadata; called before a run starts."""

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

        pixels (N, 3, H, W), N records. If the scores (A,) of the A applicable rows are given, they are used and the
        expert does not score again. Raises WrongInput unless the input is pictures in [0, 1] with their records,
        RewardError for invalid scores.
        """
        if scores is None:
            check_pictures(pixels, records, self.name)
            rows = applicable_rows(self, records)
            if not rows:
                return
            chosen = [records[row] for row in rows]
            scores, _ = split_scores(self.score(pixels[rows], chosen))
            check_scores(self.name, self.score_range, scores, chosen)
        self.score_sum += scores.sum().to(self.score_sum)
        self.score_count += scores.numel()

    def compute(self) -> Tensor:
        """The mean score () over all applicable images so far, on all ranks; NaN where there were none."""
        return self.score_sum / self.score_count


def applicable_rows(expert: RewardExpert, records: Sequence[PromptRecord]) -> list[int]:
    """The places of the records the expert applies to."""
    return [row for row, record in enumerate(records) if expert.applicable(record)]


def split_scores(result: Scores) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The result of `score` as scores and details."""
    return result if isinstance(result, tuple) else (result, {})


def check_pictures(pixels: Any, records: Any, expert: str = "ensemble") -> None:
    """Raise WrongInput unless `pixels` is (N, 3, H, W) float32, finite, in [0, 1], with N >= 1 records.

    Says what the input looks like instead: swapped arguments, channels last, whole numbers, another scale.
    """
    right = "expected float32 (N, 3, H, W) in [0, 1] and N prompt records"
    if not isinstance(pixels, Tensor):
        swapped = "; pixels and records are swapped" if isinstance(records, Tensor) else ""
        raise WrongInput(expert, f"pixels: {type(pixels).__name__}{swapped}; {right}")
    wrong = next((item for item in records if not isinstance(item, PromptRecord)), None)
    if wrong is not None:
        raise WrongInput(expert, f"records: hold a {type(wrong).__name__}; {right}")
    shape = tuple(pixels.shape)
    if pixels.dtype != torch.float32:
        hint = "" if pixels.is_floating_point() else "; divide whole numbers by 255"
        raise WrongInput(expert, f"pixels: {pixels.dtype} {shape}; {right}{hint}")
    if pixels.dim() != 4 or shape[1] != 3:
        hint = "; the channels are last, permute(0, 3, 1, 2) moves them" if shape[-1:] == (3,) else ""
        raise WrongInput(expert, f"pixels: {tuple(shape)}; {right}{hint}")
    if shape[0] != len(records) or not len(records):
        raise WrongInput(
            expert, f"pixels: {shape[0]} images for {len(records)} prompt records; expected equal and >= 1"
        )
    _check_scale(pixels, records, expert)


def _check_scale(pixels: Tensor, records: Sequence[PromptRecord], expert: str) -> None:
    flat = pixels.detach().flatten(1)
    if not flat.shape[1]:
        raise WrongInput(expert, f"pixels: {tuple(pixels.shape)}; the pictures have no pixels")
    low, high = flat.amin(1), flat.amax(1)  # NaN where a picture holds one
    fine = (low >= -PIXEL_TOLERANCE) & (high <= 1 + PIXEL_TOLERANCE)
    if fine.all():
        return
    row = int((~fine).nonzero()[0])
    least, most = float(low[row]), float(high[row])
    if not (isfinite(least) and isfinite(most)):
        told = "NaN or infinite values"
    elif most > 2:
        told = f"values from {least:.3g} to {most:.3g}, as if in 0..255; divide by 255"
    else:
        told = f"values from {least:.3g} to {most:.3g}, as if in -1..1; use (pixels + 1) / 2"
    raise WrongInput(expert, f"pixels: image {row} has {told}; expected [0, 1]", records[row].prompt)


def check_vector(name: str, what: str, value: Tensor, records: Sequence[PromptRecord]) -> None:
    """Raise RewardError unless `value` is (len(records),) float32."""
    if value.shape != (len(records),) or value.dtype != torch.float32:
        raise RewardError(
            name,
            f"{what} is {value.dtype} {tuple(value.shape)}, expected float32 ({len(records)},)",
            records[0].prompt if records else None,
        )


def check_scores(name: str, bounds: tuple[float, float], scores: Tensor, records: Sequence[PromptRecord]) -> None:
    """Raise RewardError unless scores are (len(records),) float32, finite and within the bounds."""
    check_vector(name, "score", scores, records)
    low, high = bounds
    # Written so that NaN fails it.
    fine = (scores >= low - RANGE_TOLERANCE) & (scores <= high + RANGE_TOLERANCE) & scores.isfinite()
    if not fine.all():
        row = int((~fine).nonzero()[0])
        raise RewardError(name, f"score {scores[row].item()} is outside [{low}, {high}]", records[row].prompt)
