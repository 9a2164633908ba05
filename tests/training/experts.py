"""Reward experts for runs on random tiny models: what they want can be learned in a few steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.rewards.base import RewardExpert
from src.values import PromptRecord


class Red(RewardExpert):
    """How much redder than the other channels a picture is, in [0, 1]; ``all_correct`` above one half."""

    name = "red"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, Mapping[str, Tensor]]:
        channels = pixels.flatten(2).mean(2)
        score = 0.5 + 0.5 * (channels[:, 0] - channels[:, 1:].mean(1))
        return score, {"all_correct": (score > 0.5).float()}


class Keyed(Red):
    """`Red`, with secrets among its settings."""

    def __init__(self, api_key: str, endpoint: str, from_environment: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asked_with = (api_key, endpoint, from_environment)


class NamedColour(RewardExpert):
    """Wants the colour of the prompt's first noun in all of the picture, and nothing of the other two."""

    name = "named_colour"
    score_range = (0.0, 1.0)
    channels = ("red", "green", "blue")

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        means = pixels.flatten(2).mean(2)
        wanted = torch.tensor([self.channels.index(record.nouns[0]) for record in records])
        own = means.gather(1, wanted[:, None]).squeeze(1)
        return (own + 1.0 - (means.sum(1) - own) / 2) / 2


class NaNAfter(RewardExpert):
    """A score of NaN from the `calls`-th call on."""

    name = "nan_after"
    score_range = (0.0, 1.0)

    def __init__(self, calls: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.calls = calls
        self.seen = 0

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        self.seen += 1
        return pixels.flatten(1).mean(1) * (float("nan") if self.seen > self.calls else 1.0)


class FailsFor(Red):
    """`Red`, and a failure for every picture of a prompt with `word` in it."""

    name = "fails_for"

    def __init__(self, word: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.word = word

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, Mapping[str, Tensor]]:
        if any(self.word in record.prompt for record in records):
            raise MemoryError("no room")
        return super().score(pixels, records)


class Green(RewardExpert):
    """How green a picture is, in [0, 1]."""

    name = "green"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        return pixels[:, 1].flatten(1).mean(1)
