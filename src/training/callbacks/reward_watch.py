"""Tells, once each, what a person who watches the rewards would want to know: gaming, idle and failing experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import copysign, inf, isnan, nan
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.runs.console import say
from src.training.module import BiCoTModule

# Prompt batches after which an expert that never told two rollouts of a prompt apart is reported.
NEVER_VARIES_AFTER = 20


class RewardWatch(Callback):
    """Warns of a trained reward that rises while a monitor (an expert of weight 0) falls: the mark of reward hacking.

    Both trends are taken over the last `window` prompt batches: the least-squares slope of the figure, in its
    standard errors (`trend`). A warning needs a rise and a fall of more than `threshold` each. For independent noise
    and a reward that rises all the time, threshold 4 and window 100 warn falsely of 2 % of the monitors in 1600
    steps (3: 41 %), and see 95 % of the falls by two of the noise's standard deviations within the window (one
    deviation: 11 %); simulated.

    Warns also of an expert that in its first `NEVER_VARIES_AFTER` batches gave all rollouts of each prompt the same
    score: it teaches nothing; of one that applies to no prompt, or that gave all pictures of a validation the same
    score; and of one that fails where failing experts leave their group. `warnings` has what was said, by its cause; it
    goes into checkpoints.
    """

    def __init__(self, window: int = 100, threshold: float = 4.0) -> None:
        self.window = window
        self.threshold = threshold
        self.history: dict[str, list[float]] = {}
        self.silent: dict[str, int] = {}
        self.warnings: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "silent": self.silent, "warnings": self.warnings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = {name: list(values) for name, values in state_dict["history"].items()}
        self.silent, self.warnings = dict(state_dict["silent"]), {**self.warnings, **state_dict["warnings"]}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BiCoTModule, *_: Any) -> None:
        rewards = pl_module.rewards
        signs = {name: rewards.facts[name].sign for name in rewards.names}
        self.observe(trainer.global_step, pl_module.step_metrics, signs, rewards.monitors, rewards.problems)

    def observe(
        self,
        step: int,
        figures: Mapping[str, float],
        signs: Mapping[str, float],
        monitors: Sequence[str],
        problems: Mapping[str, str],
    ) -> None:
        """Take in a step's figures. signs: 1 or -1 by expert (higher is better or worse); problems: of failures."""
        for name in signs:
            self._varies(step, name, figures.get(f"{name}/group_std"))
            if f"{name}/failed" in figures:
                problem = problems.get(name, "on another rank")
                self._warn(f"failed/{name}", f"step {step}: expert {name!r} left groups it failed on: {problem}")
        self._keep("reward", figures.get("reward", nan))
        rise = trend(self.history["reward"]) if len(self.history["reward"]) == self.window else nan
        for name in monitors:
            self._keep(name, signs[name] * figures.get(f"{name}/mean", nan))
            fall = trend(self.history[name])
            if rise > self.threshold and fall < -self.threshold:
                self._warn(
                    f"hacking/{name}",
                    f"step {step}: over {self.window} batches the reward rose (by {rise:.1f} standard errors) while"
                    f" monitor {name!r} got worse ({fall:.1f}): the policy may be gaming its reward; look at samples",
                )

    def silent_before(self, experts: Mapping[str, str]) -> None:
        """Say which experts apply to no prompt: by name, in a sentence."""
        for name, told in experts.items():
            self._warn(f"silent/{name}", told)

    def validated(self, step: int, told: Mapping[str, str]) -> None:
        """Say which experts told nothing in a whole validation: by name, in a sentence."""
        for name, sentence in told.items():
            if f"silent/{name}" not in self.warnings:
                self._warn(f"alike/{name}", f"validation at step {step}: {sentence}")

    def _varies(self, step: int, name: str, deviation: float | None) -> None:
        """Count batches without any difference within a group; one difference and the expert is never asked again."""
        count = self.silent.get(name, 0)
        if deviation is None or count < 0:
            return
        self.silent[name] = count + 1 if deviation == 0 else -1
        if self.silent[name] == NEVER_VARIES_AFTER:
            self._warn(
                f"constant/{name}",
                f"step {step}: expert {name!r} gave all rollouts of a prompt the same score in each of"
                f" {NEVER_VARIES_AFTER} batches: nothing can be learned from it",
            )

    def _keep(self, name: str, value: float) -> None:
        self.history[name] = [*self.history.get(name, []), value][-self.window :]

    def _warn(self, cause: str, message: str) -> None:
        if cause not in self.warnings:
            self.warnings[cause] = message
            say(f"warning: {message}")


def trend(values: Sequence[float]) -> float:
    """The least-squares slope of values over their places, divided by its standard error: a t statistic.

    NaN values are left out; NaN where fewer than half of them, or fewer than 5, are left. Infinite on a line.
    """
    points = [(place, value) for place, value in enumerate(values) if not isnan(value)]
    count = len(points)
    if count < 5 or 2 * count < len(values):
        return nan
    middle_x = sum(x for x, _ in points) / count
    middle_y = sum(y for _, y in points) / count
    xx = sum((x - middle_x) ** 2 for x, _ in points)
    xy = sum((x - middle_x) * (y - middle_y) for x, y in points)
    slope = xy / xx
    rest = sum((y - middle_y - slope * (x - middle_x)) ** 2 for x, y in points)
    if rest == 0:
        return copysign(inf, slope) if slope else 0.0
    return slope / (rest / (count - 2) / xx) ** 0.5
