"""Small experts without weights, for tests of everything that holds experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from src.rewards.base import RewardExpert
from src.values import PromptRecord

CHANNELS = ("red", "green", "blue")


class Brightness(RewardExpert):
    """Mean of all pixels, in [0, 1]; detail ``spread``: brightest minus darkest pixel."""

    name = "brightness"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, Mapping[str, Tensor]]:
        flat = pixels.flatten(1)
        return flat.mean(1), {"spread": flat.amax(1) - flat.amin(1)}


class NamedChannel(RewardExpert):
    """Mean of the channel that is the first noun, in [0, 1]; prompts without a colour are not its business."""

    name = "named_channel"
    score_range = (0.0, 1.0)

    def applicable(self, record: PromptRecord) -> bool:
        return bool(record.nouns) and record.nouns[0] in CHANNELS

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        channel = torch.tensor([CHANNELS.index(record.nouns[0]) for record in records])
        return pixels.flatten(2).mean(2)[torch.arange(len(records)), channel]


class Glare(RewardExpert):
    """Mean of all pixels, unwanted: lower is better."""

    name = "glare"
    score_range = (0.0, 1.0)
    higher_is_better = False

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        return pixels.flatten(1).mean(1)


def flat_images(*colours: tuple[float, float, float], side: int = 2) -> Tensor:
    """One-coloured images (N, 3, side, side): their scores can be seen."""
    return torch.tensor(colours, dtype=torch.float32)[:, :, None, None].expand(-1, -1, side, side).contiguous()


def about(noun: str) -> PromptRecord:
    """A record whose first noun is `noun`."""
    return PromptRecord(f"a {noun} picture", "colour", nouns=(noun,))


class Flat(RewardExpert):
    """A quarter for every picture: an expert that tells nothing apart."""

    name = "flat"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        return torch.full((len(records),), 0.25)
