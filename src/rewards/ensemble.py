"""Several reward experts as one reward, every score checked before anything is trained on it.

The ensemble is a plain object, not an ``nn.Module``: an attribute that holds it registers nothing, so the
experts' weights never reach a module's state dict, parameters or checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from src.phases import phase
from src.rewards.base import RewardError, RewardExpert, applicable_rows, split_scores
from src.rewards.combine import COMBINE
from src.values import PromptRecord, RewardReport

# A score may leave its declared range by rounding (a cosine of 1 + 1e-7), never by more.
RANGE_TOLERANCE = 1e-5


class RewardEnsemble:
    """Calls each expert on the images it applies to and combines the scores to totals.

    experts: by the name they have in reports, or a sequence of experts that keep their own names.
    weights: by expert name, >= 0, 1 where not named; 0 makes an expert a monitor, scored and logged but
    never part of a total. An expert whose `higher_is_better` is False is subtracted. combine: "sum" or
    "mean" over the applicable experts. Raises ValueError for a choice that cannot work.

    `seconds` holds what each expert took in the last call.
    """

    def __init__(
        self,
        experts: Mapping[str, RewardExpert] | Iterable[RewardExpert],
        weights: Mapping[str, float] | None = None,
        combine: str = "sum",
    ) -> None:
        self.experts = _by_name(experts)
        self.weights = _checked_weights(tuple(self.experts), weights or {})
        if combine not in COMBINE:
            raise ValueError(f"rewards.combine={combine}: expected one of {', '.join(COMBINE)}")
        self.combine = combine
        self.seconds: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in the order of a report's columns."""
        return tuple(self.experts)

    def to(self, device: torch.device | str) -> RewardEnsemble:
        """Move every expert; pixels follow each expert to its device by themselves."""
        for expert in self.experts.values():
            expert.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor, records: Sequence[PromptRecord]) -> RewardReport:
        """Score N images against their N records, and add them to the running means.

        pixels (N, 3, H, W) float32 in [0, 1]. The report's tensors are on the device of `pixels`; a score
        that does not apply is NaN there. Raises RewardError, naming expert and prompt, where an expert
        fails or gives something that is no score, and where no expert with a weight applies to a prompt.
        """
        _check_images(pixels, records)
        signs = torch.tensor([1.0 if expert.higher_is_better else -1.0 for expert in self.experts.values()])
        weights = torch.tensor([self.weights[name] for name in self.names])
        scores = torch.full((len(records), len(self.experts)), float("nan"))
        details: dict[str, Tensor] = {}
        for column, name in enumerate(self.names):
            rows, found, extra = self._score(name, pixels, records)
            scores[rows, column] = found
            for key, value in extra.items():
                _add_detail(details, name, key, value, rows, len(records))
        applicable = ~scores.isnan()
        _check_every_prompt_is_judged(applicable & (weights > 0), records)
        total = COMBINE[self.combine](signs * scores, applicable, weights)
        return RewardReport(
            self.names,
            scores.to(pixels.device),
            applicable.to(pixels.device),
            total.to(pixels.device),
            {key: value.to(pixels.device) for key, value in details.items()},
        )

    def compute(self) -> dict[str, float]:
        """Each expert's mean since the last `reset`, NaN if it never applied; under DDP all ranks must call."""
        return {name: float(expert.compute()) for name, expert in self.experts.items() if expert.update_called}

    def reset(self) -> None:
        """Forget the running means."""
        for expert in self.experts.values():
            expert.reset()

    def _score(
        self, name: str, pixels: Tensor, records: Sequence[PromptRecord]
    ) -> tuple[list[int], Tensor, Mapping[str, Tensor]]:
        """The rows the expert applies to, with its checked scores and details, on the CPU."""
        expert = self.experts[name]
        start = time.perf_counter()
        try:
            rows = applicable_rows(expert, records)
            chosen = [records[row] for row in rows]
            with phase(f"scoring (expert {name!r}, first prompt {records[0].prompt!r})"):
                result = expert.score(pixels[rows].to(expert.device), chosen) if rows else torch.zeros(0)
        except Exception as error:
            raise RewardError(name, f"{type(error).__name__}: {error}", records[0].prompt) from error
        scores, details = split_scores(result)
        _check_scores(name, expert, scores, chosen)
        for key, value in details.items():
            _check_vector(name, f"detail {key!r}", value, chosen)
        expert.update(pixels, records, scores)
        scores, details = scores.cpu(), {key: value.cpu() for key, value in details.items()}
        self.seconds[name] = time.perf_counter() - start
        return rows, scores, details


def report_metrics(report: RewardReport) -> dict[str, float]:
    """A report as figures for the logs: ``total/mean``, ``total/std`` and, of each expert, mean, std and share
    of images it applies to (``judge/mean`` ...), each detail's mean under its own name.

    Standard deviations are those of the population; figures that nothing applies to are left out.
    """
    figures = {"total": report.total}
    figures |= {
        name: report.scores[:, column][report.applicable[:, column]] for column, name in enumerate(report.names)
    }
    metrics: dict[str, float] = {}
    for name, values in figures.items():
        if values.numel():
            metrics[f"{name}/mean"] = float(values.mean())
            metrics[f"{name}/std"] = float(values.std(correction=0))
    for column, name in enumerate(report.names):
        metrics[f"{name}/applicable"] = float(report.applicable[:, column].float().mean())
    for name, values in report.details.items():
        if not values.isnan().all():
            metrics[name] = float(values.nanmean())
    return metrics


def _by_name(experts: Mapping[str, RewardExpert] | Iterable[RewardExpert]) -> dict[str, RewardExpert]:
    pairs = experts.items() if isinstance(experts, Mapping) else ((expert.name, expert) for expert in experts)
    named = list(pairs)
    if not named:
        raise ValueError("rewards: no expert; give at least one")
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        raise ValueError(f"rewards: two experts share a name ({', '.join(names)}); give them different ones")
    return dict(named)


def _checked_weights(names: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(f"rewards.weights.{name}: no such expert; there are {', '.join(names)}")
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"rewards.weights.{name}={weight}: expected a finite number >= 0 (0 only monitors)")
    filled = {name: float(weights.get(name, 1.0)) for name in names}
    if not any(filled.values()):
        raise ValueError("rewards.weights: all are 0, so nothing would be rewarded; give one expert a weight > 0")
    return filled


def _check_images(pixels: Tensor, records: Sequence[PromptRecord]) -> None:
    if pixels.dim() != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.float32:
        raise ValueError(f"pixels: {pixels.dtype} {tuple(pixels.shape)}, expected float32 (N, 3, H, W)")
    if len(pixels) != len(records) or not records:
        raise ValueError(f"pixels: {len(pixels)} images for {len(records)} prompt records; expected equal and >= 1")


def _check_vector(name: str, what: str, value: Tensor, records: Sequence[PromptRecord]) -> None:
    if value.shape != (len(records),) or value.dtype != torch.float32:
        raise RewardError(
            name,
            f"{what} is {value.dtype} {tuple(value.shape)}, expected float32 ({len(records)},)",
            records[0].prompt if records else None,
        )


def _check_scores(name: str, expert: RewardExpert, scores: Tensor, records: Sequence[PromptRecord]) -> None:
    """Raise RewardError unless scores are (len(records),) float32, finite and within the expert's range."""
    _check_vector(name, "score", scores, records)
    low, high = expert.score_range
    # Written so that NaN fails it.
    fine = (scores >= low - RANGE_TOLERANCE) & (scores <= high + RANGE_TOLERANCE) & scores.isfinite()
    if not fine.all():
        row = int((~fine).nonzero()[0])
        raise RewardError(name, f"score {scores[row].item()} is outside [{low}, {high}]", records[row].prompt)


def _check_every_prompt_is_judged(judged: Tensor, records: Sequence[PromptRecord]) -> None:
    """Raise RewardError for an image without any score to train on: its total would be made up."""
    unjudged = (~judged.any(dim=1)).nonzero()
    if unjudged.numel():
        record = records[int(unjudged[0])]
        raise RewardError(
            "ensemble",
            f"no expert with a weight applies to task type {record.task_type!r}; add one that does or drop the prompt",
            record.prompt,
        )


def _add_detail(details: dict[str, Tensor], expert: str, key: str, value: Tensor, rows: list[int], images: int) -> None:
    """Spread a detail over all images (NaN elsewhere); a name that is taken gets its expert's before it."""
    full = torch.full((images,), float("nan"))
    full[rows] = value
    details[f"{expert}/{key}" if key in details else key] = full
