"""The drawn world's judge as a reward expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.rewards.base import RewardExpert
from src.shapes.judge import judge, world_of
from src.shapes.known import completed
from src.shapes.requirements import Requirement
from src.shapes.worlds import WORLDS
from src.values import PromptRecord


class ShapesJudge(RewardExpert):
    """Scores how well a picture of coloured shapes shows what its prompt asks for.

    score = (1 - bonus) * mean of the applicable aspects + bonus * all_correct, in [0, 1]. The aspects
    (`src.shapes.judge`) make it dense; the bonus keeps the picture that is right in everything well above
    one that is nearly right, so that no aspect is worth giving up for another. The size of the pictures decides which
    world is drawn (`src.shapes.worlds`).

    Args:
        bonus: weight of all_correct, in [0, 1].

    Raises:
        ValueError: for a bonus out of range.
    """

    name = "shapes_judge"
    score_range = (0.0, 1.0)
    higher_is_better = True
    full_state_update = False
    needs = "scene.objects, or wording of the drawn world"

    def __init__(self, bonus: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= bonus <= 1:
            raise ValueError(f"ShapesJudge: bonus {bonus} must lie in [0, 1]")
        self.bonus = bonus

    def applicable(self, record: PromptRecord) -> bool:
        """Whether the record, or else its wording, says which objects a correct picture shows."""
        return bool(completed(record).scene.get("objects"))

    def check(self, record: PromptRecord) -> None:
        """Raise ValueError for a scene that no world can read; the world is known only from the pictures."""
        if not record.scene.get("objects"):
            return
        problems = []
        for world in WORLDS.values():
            try:
                Requirement.from_json(record.scene, world)
            except ValueError as error:
                problems.append(error)
        if len(problems) == len(WORLDS):
            raise problems[0]

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores (N,) float32 of pixels (N, 3, H, H) in [0, 1]; details: all_correct and every aspect.

        Raises ValueError for pictures that fit no world, or for objects that their world cannot draw.
        """
        world = world_of(pixels)
        judgement = judge(pixels, [completed(record, world) for record in records], world)
        all_correct = judgement.all_correct.float()
        mean = torch.stack(tuple(judgement.aspects.values())).nanmean(0)
        score = (1 - self.bonus) * mean + self.bonus * all_correct
        details = {"all_correct": all_correct, **judgement.aspects}
        return score.to(pixels.device), {name: value.to(pixels.device) for name, value in details.items()}
