"""The interface between an ensemble and its experts, and the experts of this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from src.rewards.base import (
    RewardError,
    RewardExpert,
    applicable_rows,
    check_pictures,
    check_scores,
    check_vector,
    split_scores,
)
from src.runs.phases import phase
from src.values import PromptRecord

OFFLOAD = "offload"


@dataclass(frozen=True, slots=True)
class ExpertFacts:
    """What an expert declares: the inclusive bounds of its scores, and whether more is better."""

    score_range: tuple[float, float]
    higher_is_better: bool

    @property
    def sign(self) -> float:
        return 1.0 if self.higher_is_better else -1.0

    @property
    def signed_range(self) -> tuple[float, float]:
        """The bounds of sign * score."""
        low, high = self.score_range
        return (low, high) if self.higher_is_better else (-high, -low)


@dataclass(frozen=True, slots=True)
class ExpertScores:
    """One expert's answer for some of N images: rows (A of them) and, for each, score (A,) and details (A,) float32.

    On the CPU, checked. seconds: what it took.
    """

    rows: Sequence[int]
    scores: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


# A failed expert has an error in place of scores; the ensemble decides whether that ends the run.
Answers = Mapping[str, ExpertScores | RewardError]


class Experts(Protocol):
    """One or several experts that are called together."""

    @property
    def facts(self) -> Mapping[str, ExpertFacts]:
        """The experts by name."""

    def score(self, pixels: Tensor, records: Sequence[PromptRecord], names: Sequence[str]) -> Answers:
        """The answers of the experts `names`; pixels (N, 3, H, W) float32 in [0, 1], N records."""

    def to(self, device: torch.device | str) -> object:
        """Make `device` the training device."""

    def device_bytes(self, device: torch.device) -> int:
        """Bytes of weights that stay on `device`, the one to be trained on."""

    def means(self) -> dict[str, float]:
        """The mean score by expert since the last `reset`, for those that scored; on all ranks, all must call."""

    def reset(self) -> None:
        """Forget the means."""


class LocalExperts:
    """Experts in this process.

    devices: where an expert works, by name: a torch device, or "offload": on the training device while it scores
    and on the CPU otherwise. One that is not named works on the training device.
    """

    def __init__(self, experts: Mapping[str, RewardExpert], devices: Mapping[str, str] | None = None) -> None:
        self.experts = dict(experts)
        self.devices = dict(devices or {})
        self._training_device: torch.device | str = "cpu"

    @property
    def facts(self) -> dict[str, ExpertFacts]:
        return {name: ExpertFacts(expert.score_range, expert.higher_is_better) for name, expert in self.experts.items()}

    def to(self, device: torch.device | str) -> LocalExperts:
        self._training_device = device
        for name, expert in self.experts.items():
            place = self.devices.get(name, device)
            expert.to("cpu" if place == OFFLOAD else place)
        return self

    def device_bytes(self, device: torch.device) -> int:
        places = {name: self.devices.get(name, device) for name in self.experts}
        return sum(self.experts[name].weight_bytes() for name, place in places.items() if stays_on(place, device))

    def means(self) -> dict[str, float]:
        return {name: float(expert.compute()) for name, expert in self.experts.items() if expert.update_called}

    def reset(self) -> None:
        for expert in self.experts.values():
            expert.reset()

    @torch.no_grad()
    def score(self, pixels: Tensor, records: Sequence[PromptRecord], names: Sequence[str]) -> Answers:
        """Call the experts one after the other; scores are checked and added to the means.

        Raises WrongInput unless the input is pictures in [0, 1] with their records.
        """
        check_pictures(pixels, records)
        return {name: self._score(name, pixels, records) for name in names}

    def _score(self, name: str, pixels: Tensor, records: Sequence[PromptRecord]) -> ExpertScores | RewardError:
        expert = self.experts[name]
        start = time.perf_counter()
        try:
            rows = applicable_rows(expert, records)
            chosen = [records[row] for row in rows]
            with (
                phase(f"scoring (expert {name!r}, first prompt {records[0].prompt!r})"),
                self._placed(name),
            ):
                result = expert.score(pixels[rows].to(expert.device), chosen) if rows else torch.zeros(0)
                scores, details = split_scores(result)
                check_scores(name, expert.score_range, scores, chosen)
                for key, value in details.items():
                    check_vector(name, f"detail {key!r}", value, chosen)
                expert.update(pixels, records, scores)
                scores, details = scores.cpu(), {key: value.cpu() for key, value in details.items()}
        except RewardError as error:
            return error if error.expert == name else RewardError(name, error.problem, error.prompt)
        except Exception as error:
            failure = RewardError(name, f"{type(error).__name__}: {error}", records[0].prompt)
            failure.__cause__ = error
            return failure
        return ExpertScores(rows, scores, details, time.perf_counter() - start)

    @contextmanager
    def _placed(self, name: str) -> Iterator[None]:
        """The expert on the training device if it is offloaded, and back on the CPU afterwards."""
        if self.devices.get(name) != OFFLOAD:
            yield
            return
        self.experts[name].to(self._training_device)
        try:
            yield
        finally:
            self.experts[name].to("cpu")


def stays_on(place: torch.device | str, device: torch.device) -> bool:
    """Whether an expert placed at `place` is on `device` all the time; without a number, a GPU is the process's own."""
    if place == OFFLOAD:
        return False
    there = torch.device(place)
    return there.type == device.type and (there.index is None or there.index == (device.index or 0))
