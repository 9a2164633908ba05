"""The weight of the entropy bonus over a run: fixed, or steered to a floor of the entropy; one for each level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.algorithms.entropy import active_bonus, adapted_bonus


@dataclass(frozen=True, slots=True)
class EntropySettings:
    """bonus: the first coefficient of each level, >= 0. target: in nats; None keeps the coefficient fixed.

    step and maximum rule the steering; see `src.algorithms.entropy`.
    """

    bonus: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, float | None] = field(default_factory=dict)
    step: float = 0.005
    maximum: float = 0.1


class EntropyControl:
    """The coefficients now, and what moves them. Its state belongs into the checkpoint."""

    def __init__(self, settings: EntropySettings) -> None:
        self.settings = settings
        self._bonus = {name: float(value) for name, value in settings.bonus.items()}
        self._entropy: dict[str, float] = {}

    @property
    def used(self) -> bool:
        """Whether there is any bonus, now or later."""
        return any(self._bonus.values()) or any(value is not None for value in self.settings.target.values())

    def coefficients(self) -> dict[str, float]:
        """Each level's coefficient for this step: 0 while its entropy, as last measured, is above its target."""
        return {name: self._active(name, bonus) for name, bonus in self._bonus.items()}

    def _active(self, name: str, bonus: float) -> float:
        target, entropy = self.settings.target.get(name), self._entropy.get(name)
        return bonus if target is None or entropy is None else active_bonus(bonus, entropy, target)

    def observe(self, entropy: Mapping[str, float]) -> None:
        """Take note of a step's mean token entropy (nats) of each level; NaN (no token counted) says nothing."""
        for name, value in entropy.items():
            target = self.settings.target.get(name)
            if target is None or not math.isfinite(value):
                continue
            self._entropy[name] = value
            self._bonus[name] = adapted_bonus(
                self._bonus.get(name, 0.0), value, target, self.settings.step, self.settings.maximum
            )

    def state_dict(self) -> dict[str, Any]:
        return {"bonus": dict(self._bonus), "entropy": dict(self._entropy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bonus, self._entropy = dict(state["bonus"]), dict(state["entropy"])
