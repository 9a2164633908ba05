"""A reward that is weak on purpose: it asks for the prompt's colours and takes any amount of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.rewards.base import RewardExpert
from src.shapes.worlds import SMALL
from src.values import PromptRecord

TOLERANCE = 0.15  # how far a channel may be from the clean colour


class NamedColours(RewardExpert):
    """Share of the picture that is painted in a colour the prompt names, in [0, 1].

    A right picture scores low (a few shapes on an empty ground), a picture filled with the colour high.
    """

    name = "named_colours"
    score_range = (0.0, 1.0)

    def applicable(self, record: PromptRecord) -> bool:
        """Whether the prompt names a colour."""
        return bool(named(record))

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> (N,) float32."""
        palette = torch.tensor(list(SMALL.colors.values()), device=pixels.device)  # (C, 3)
        distance = (pixels[:, None] - palette[:, :, None, None]).abs().amax(2)  # (N, C, H, W)
        shares = (distance < TOLERANCE).float().mean((2, 3))  # (N, C)
        asked = torch.tensor([[color in named(record) for color in SMALL.colors] for record in records])
        return (shares * asked.to(shares)).sum(1).clamp(max=1.0)


def named(record: PromptRecord) -> set[str]:
    """The colours among a prompt's words; "every colour but red" names all the others."""
    words = set(record.prompt.replace(",", " ").split())
    found = words & SMALL.colors.keys()
    return set(SMALL.colors) - found if "colour" in words and words & {"but", "except"} else found
