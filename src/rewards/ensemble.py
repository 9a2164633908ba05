"""Several reward experts as one reward; every score is checked before training uses it.

The ensemble is a plain object, not an ``nn.Module``: an attribute that holds it registers nothing, so the
experts' weights never reach a module's state dict, parameters or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from src.rewards.base import RewardError, RewardExpert, check_pictures
from src.rewards.combine import COMBINE, check_domain
from src.rewards.local import Experts, ExpertScores, LocalExperts
from src.rewards.normalise import NORMALISATIONS, RunningStatistics, Scale, by_group, by_scale
from src.values import PromptRecord, RewardReport

ON_ERROR = ("raise", "drop")
# (first row, number of rows, the expert's answer for them)
Answer = tuple[int, int, ExpertScores | RewardError]
# This rank's tensor -> every rank's, in the order of ranks.
Gather = Callable[[Tensor], list[Tensor]]


class RewardEnsemble:
    """Calls each expert on the images it applies to and combines the scores to totals.

    experts: of this process, by the name they have in reports, or a sequence of experts that keep their own names.
    weights: by expert name, >= 0, 1 where not named; 0 makes an expert a monitor, scored and logged but
    never part of a total. An expert whose `higher_is_better` is False is subtracted. combine: one of
    `src.rewards.combine.COMBINE`, over the applicable experts. normalise: one of
    `src.rewards.normalise.NORMALISATIONS` for all, or by expert name ("none" where not named). on_error: "raise"
    ends with the first failure; under "drop" an expert that fails leaves the whole group. devices: where the
    experts of this process work (`LocalExperts`). elsewhere: further experts that are served from another process.
    order: of a report's columns. truncate: how experts see pixels (`eight_bit`). Raises ValueError for a choice that
    cannot work.

    `seconds` has the time of each expert in the last call, `problems` the first failure of each that failed.
    """

    def __init__(
        self,
        experts: Mapping[str, RewardExpert] | Iterable[RewardExpert] = (),
        weights: Mapping[str, float] | None = None,
        combine: str = "sum",
        normalise: str | Mapping[str, str] = "none",
        on_error: str = "raise",
        devices: Mapping[str, str] | None = None,
        elsewhere: Experts | None = None,
        order: Sequence[str] | None = None,
        truncate: bool = False,
    ) -> None:
        local = LocalExperts(_by_name(experts), devices)
        self.sources: list[Experts] = [source for source in (local, elsewhere) if source is not None and source.facts]
        found = {name: facts for source in self.sources for name, facts in source.facts.items()}
        if not found:
            raise ValueError("rewards: there are no experts; give at least one")
        self.facts = {name: found[name] for name in order or found}
        self.weights = _checked_weights(self.names, weights or {})
        self.normalise = _checked_normalisation(self.names, normalise)
        for key, value, known in (("combine", combine, COMBINE), ("on_error", on_error, ON_ERROR)):
            if value not in known:
                raise ValueError(f"rewards.{key}={value}: expected one of {', '.join(known)}")
        ranges = {name: facts.signed_range for name, facts in self.facts.items()}
        check_domain(combine, self.weights, ranges, self.normalise)
        self.combine, self.on_error, self.truncate = combine, on_error, truncate
        self.running = {name: RunningStatistics() for name in self.names if self.normalise[name] == "running"}
        self.seconds: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in the order of a report's columns."""
        return tuple(self.facts)

    @property
    def monitors(self) -> tuple[str, ...]:
        """The experts that are only monitored."""
        return tuple(name for name in self.names if not self.weights[name])

    @property
    def experts_here(self) -> dict[str, RewardExpert]:
        """The experts of this process by name."""
        sources = (source for source in self.sources if isinstance(source, LocalExperts))
        return {name: expert for source in sources for name, expert in source.experts.items()}

    def to(self, device: torch.device | str) -> RewardEnsemble:
        """Move the experts; pixels follow each expert to its device by themselves."""
        for source in self.sources:
            source.to(device)
        return self

    def device_bytes(self, device: torch.device) -> int:
        """Bytes of experts' weights that stay on `device`, the one to be trained on."""
        return sum(source.device_bytes(device) for source in self.sources)

    @torch.no_grad()
    def __call__(
        self,
        pixels: Tensor,
        records: Sequence[PromptRecord],
        group_size: int | None = None,
        every_prompt: bool = True,
    ) -> RewardReport:
        """Score N images against their N records, and add them to the running means.

        pixels (N, 3, H, W) float32 in [0, 1]; experts see them in 8 bit a channel, as a picture is saved. group_size:
        of the rollouts of one prompt that are compared with each other, consecutive rows; None: no groups. The total
        is the combination of the scores as they are (`normalised` makes the one that trains); the report's tensors are
        on the device of `pixels`, and a score that does not apply is NaN there.

        An expert that fails under "drop" is left out for the whole group. Without groups its image has no total,
        since it would not be comparable with the others. An invalid score (NaN, out of range, a wrong shape) is a
        failure like any other. Raises RewardError, naming expert and prompt, where an expert fails under "raise" and,
        unless
        `every_prompt` is False, where no expert with a weight applies to a prompt; WrongInput, whatever `on_error`
        says, for pixels of another shape, type or scale.
        """
        check_pictures(pixels, records)
        pixels = eight_bit(pixels, self.truncate)
        scores = torch.full((len(records), len(self.names)), float("nan"))
        failed = torch.zeros_like(scores, dtype=torch.bool)
        details: dict[str, Tensor] = {}
        self.seconds = dict.fromkeys(self.names, 0.0)
        answers = self._answers(pixels, records, group_size or 1)
        for column, name in enumerate(self.names):
            mine: dict[str, Tensor] = {}
            for first, count, answer in answers[name]:
                if isinstance(answer, RewardError):
                    failed[first : first + count, column] = True
                    continue
                rows = [first + row for row in answer.rows]
                scores[rows, column] = answer.scores
                self.seconds[name] += answer.seconds
                for key, value in answer.details.items():
                    mine.setdefault(key, torch.full((len(records),), float("nan")))[rows] = value
            # A name already in use gets the expert's name as a prefix.
            details |= {f"{name}/{key}" if key in details else key: value for key, value in mine.items()}
        applicable = ~scores.isnan()
        weights = self._weights()
        if every_prompt:
            _check_every_prompt_is_judged((applicable | failed) & (weights > 0), records)
        total = COMBINE[self.combine](self._signs() * scores, applicable, weights)
        if group_size is None:
            total = total.masked_fill((failed & (weights > 0)).any(1), float("nan"))
        device = pixels.device
        details = {key: value.to(device) for key, value in details.items()}
        return RewardReport(
            self.names, scores.to(device), applicable.to(device), total.to(device), details, failed=failed.to(device)
        )

    def scale(self, report: RewardReport, gather: Gather = lambda mine: [mine]) -> Scale:
        """The scales of one step by its own prompts' scores; running statistics take them in first.

        report: of this rank. gather: gives every rank's tensor; it is called if an expert is normalised over more
        than its group, by all ranks. Call it once per step, so that a resumed run has the same statistics.
        """
        columns = [column for column, name in enumerate(self.names) if self.normalise[name] in ("batch", "running")]
        if not columns:
            return {}
        mine = report.scores.masked_fill(~report.applicable, float("nan"))[:, columns]
        everyone = torch.cat([part.cpu() for part in gather(mine)])
        scale = {}
        for place, column in enumerate(columns):
            name, values = self.names[column], everyone[:, place]
            statistics = self.running.get(name, RunningStatistics())
            statistics.update(self.facts[name].sign * values[~values.isnan()])
            scale[column] = (statistics.mean, statistics.std)
        return scale

    def normalised(self, report: RewardReport, scale: Scale, group_size: int) -> RewardReport:
        """The report with the total that trains: of normalised scores; `raw` keeps the one in the scores' units."""
        if set(self.normalise.values()) == {"none"}:
            return report
        device = report.scores.device
        scores = self._signs().to(device) * report.scores
        for column, name in enumerate(self.names):
            if self.normalise[name] == "group":
                scores[:, column] = by_group(scores[:, column], report.applicable[:, column], group_size)
            elif column in scale:
                scores[:, column] = by_scale(scores[:, column], *scale[column])
        total = COMBINE[self.combine](scores, report.applicable, self._weights().to(device))
        return replace(report, total=total)

    def compute(self) -> dict[str, float]:
        """Each expert's mean since the last `reset`, if it scored; under DDP all ranks must call."""
        return {name: mean for source in self.sources for name, mean in source.means().items()}

    def reset(self) -> None:
        """Forget the running means."""
        for source in self.sources:
            source.reset()

    def state_dict(self) -> dict[str, Any]:
        """The running statistics, which a resumed run needs to normalise like an undisturbed one."""
        return {name: statistics.state_dict() for name, statistics in self.running.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name, statistics in self.running.items():
            if name in state:  # otherwise the expert is new, in a run resumed with other settings
                statistics.load_state_dict(state[name])

    def _signs(self) -> Tensor:
        return torch.tensor([facts.sign for facts in self.facts.values()])

    def _weights(self) -> Tensor:
        return torch.tensor([self.weights[name] for name in self.names])

    def _answers(self, pixels: Tensor, records: Sequence[PromptRecord], group_size: int) -> dict[str, list[Answer]]:
        """Each expert's answer, for all images at once or group by group.

        Under "drop" an expert that fails is asked again group by group, to lose as few as possible.
        """
        asked = [(source, source.score(pixels, records, tuple(source.facts))) for source in self.sources]
        answers: dict[str, list[Answer]] = {}
        for name in self.names:
            source, answer = next((source, found[name]) for source, found in asked if name in found)
            answers[name] = [(0, len(records), answer)]
            if not isinstance(answer, RewardError):
                continue
            if self.on_error == "raise":
                raise answer
            self.problems.setdefault(name, str(answer))
            if len(records) > group_size:
                groups = [slice(first, first + group_size) for first in range(0, len(records), group_size)]
                answers[name] = [
                    (group.start, len(records[group]), source.score(pixels[group], records[group], (name,))[name])
                    for group in groups
                ]
        return answers


def eight_bit(pixels: Tensor, truncate: bool = False) -> Tensor:
    """Pixels in [0, 1] at the nearest of 256 levels: float32, what a PNG of them would hold; NaN stays NaN.

    truncate: at the level below, as the released T2I-R1 does, whose cast to uint8 cuts the fraction off.
    """
    levels = pixels.clamp(0.0, 1.0) * 255.0
    return (levels.floor() if truncate else levels.round()) / 255.0


def report_metrics(report: RewardReport, group_size: int | None = None) -> dict[str, float]:
    """A report as figures for the logs: ``total/mean``, ``total/std`` (of the raw reward) and, of each expert, mean,
    std and share of images it applies to (``judge/mean`` ...), each detail's mean under its own name.

    With `group_size` also ``judge/group_std``: the mean deviation within a group, 0 for an expert that scores all
    rollouts of a prompt the same. ``judge/failed`` is the share of images it failed on, where there are any.
    Standard deviations are those of the population; figures that nothing applies to are left out.
    """
    figures = {"total": report.raw[report.judged]}
    figures |= {
        name: report.scores[:, column][report.applicable[:, column]] for column, name in enumerate(report.names)
    }
    metrics: dict[str, float] = {}
    for name, values in figures.items():
        if values.numel():
            metrics[f"{name}/mean"] = float(values.mean())
            metrics[f"{name}/std"] = float(values.std(correction=0))
            if group_size is not None and name != "total":
                # All rows of a group apply, or none.
                groups = values.view(-1, group_size)
                spread = groups.std(1, correction=0).masked_fill(groups.amax(1) == groups.amin(1), 0.0)
                metrics[f"{name}/group_std"] = float(spread.mean())
    for column, name in enumerate(report.names):
        metrics[f"{name}/applicable"] = float(report.applicable[:, column].float().mean())
        if report.failed[:, column].any():
            metrics[f"{name}/failed"] = float(report.failed[:, column].float().mean())
    for name, values in report.details.items():
        if not values.isnan().all():
            metrics[name] = float(values.nanmean())
    return metrics


def _checked_weights(names: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """A weight for each of `names`; raises ValueError for an unknown or invalid one, and if all are 0."""
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(f"rewards.weights.{name}: no such expert; there are {', '.join(names)}")
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"rewards.weights.{name}={weight}: expected a finite number >= 0 (0 only monitors)")
    filled = {name: float(weights.get(name, 1.0)) for name in names}
    if not any(filled.values()):
        raise ValueError("rewards.weights: all weights are 0, so there is no reward; give one expert a weight > 0")
    return filled


def _by_name(experts: Mapping[str, RewardExpert] | Iterable[RewardExpert]) -> dict[str, RewardExpert]:
    pairs = experts.items() if isinstance(experts, Mapping) else ((expert.name, expert) for expert in experts)
    named = list(pairs)
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        raise ValueError(f"rewards: two experts share a name ({', '.join(names)}); give them different ones")
    return dict(named)


def _checked_normalisation(names: Sequence[str], normalise: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(normalise, str):
        normalise = dict.fromkeys(names, normalise)
        where = "rewards.normalise"
    else:
        where = "rewards.normalise.{}"
    for name, choice in normalise.items():
        if name not in names:
            raise ValueError(f"rewards.normalise.{name}: no such expert; there are {', '.join(names)}")
        if choice not in NORMALISATIONS:
            raise ValueError(f"{where.format(name)}={choice}: expected one of {', '.join(NORMALISATIONS)}")
    return {name: normalise.get(name, "none") for name in names}


def _check_every_prompt_is_judged(judged: Tensor, records: Sequence[PromptRecord]) -> None:
    """Raise RewardError for an image without any score to train on, since it would have no total."""
    unjudged = (~judged.any(dim=1)).nonzero()
    if unjudged.numel():
        record = records[int(unjudged[0])]
        raise RewardError(
            "ensemble",
            f"no expert with a weight applies to task type {record.task_type!r}; add one that does or drop the prompt",
            record.prompt,
        )
