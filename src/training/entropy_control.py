"""The weight of the entropy bonus over a run: fixed, or steered to a floor of the entropy; one for each level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from src.algorithms.entropy import active_bonus, adapted_bonus
from src.config.schema import AlgorithmConfig


class EntropyControl:
    """The coefficients now, and what moves them. Its state belongs into the checkpoint."""

    def __init__(self, settings: AlgorithmConfig) -> None:
        self.settings = settings
        self._targets: Mapping[str, float | None] = vars(settings.entropy_target)
        self._bonus = {name: float(value) for name, value in vars(settings.entropy_bonus).items()}
        self._entropy: dict[str, float] = {}

    @property
    def used(self) -> bool:
        """Whether there is any bonus, now or later."""
        return any(self._bonus.values()) or any(value is not None for value in self._targets.values())

    def coefficients(self) -> dict[str, float]:
        """Each level's coefficient for this step: 0 while its entropy, as last measured, is above its target."""
        return {name: self._active(name, bonus) for name, bonus in self._bonus.items()}

    def _active(self, name: str, bonus: float) -> float:
        target, entropy = self._targets.get(name), self._entropy.get(name)
        return bonus if target is None or entropy is None else active_bonus(bonus, entropy, target)

    def observe(self, entropy: Mapping[str, float]) -> None:
        """Take note of a step's mean token entropy (nats) of each level; NaN (no token counted) says nothing."""
        for name, value in entropy.items():
            target = self._targets.get(name)
            if target is None or not math.isfinite(value):
                continue
            self._entropy[name] = value
            self._bonus[name] = adapted_bonus(
                self._bonus.get(name, 0.0), value, target, self.settings.entropy_step, self.settings.entropy_maximum
            )

    def state_dict(self) -> dict[str, Any]:
        return {"bonus": dict(self._bonus), "entropy": dict(self._entropy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bonus, self._entropy = dict(state["bonus"]), dict(state["entropy"])
