"""Validation before, during and after training, and the best weights by it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.config.errors import UserError
from src.rewards.base import RewardError
from src.runs.console import say
from src.runs.files import read_weights
from src.runs.phases import phase
from src.runs.sound_files import (
    file_digest,
    partial_path,
    put_in_place,
    require_sound,
    saving,
    sync_file,
)
from src.training.callbacks.graceful import GracefulStop, StopRequested
from src.training.callbacks.reward_watch import RewardWatch
from src.training.callbacks.sheets import ValidationSheets
from src.training.held_out import Evaluation, EvaluationSettings, evaluate, told_nothing
from src.training.module import BiCoTModule
from src.values import PromptRecord


class BestByValidation(Callback):
    """Evaluates the validation prompts every `every` optimiser steps and keeps the best weights on disk.

    `monitor` is the figure that decides, higher is better. Open reproductions see the score fall when
    training goes on; the last weights are not the result, the best are.
    """

    def __init__(
        self,
        records: Sequence[PromptRecord],
        settings: EvaluationSettings,
        every: int,
        monitor: str,
        weights: Path,
        stop: GracefulStop,
        sheets: ValidationSheets,
        watch: RewardWatch | None = None,
    ) -> None:
        self.records = records
        self.settings = settings
        self.every = every
        self.monitor = monitor
        self.weights = weights
        self.stop = stop
        self.sheets = sheets
        self.watch = watch
        self.best: float | None = None
        self.best_step: int | None = None
        self.history: dict[int, dict[str, float]] = {}
        self.pending = False
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "history": self.history, "pending": self.pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.pending = state_dict["pending"]
        self.history = {int(step): figures for step, figures in state_dict["history"].items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: BiCoTModule) -> None:
        if self.best is not None and not self.weights.is_file():
            self.best = self.best_step = None  # taken away since, say because they were damaged: the next are the best
        # A resumed run has its history; one more validation would be one that the undisturbed run never made.
        if self.pending or not self.history:
            self.validate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BiCoTModule, *_: Any) -> None:
        step = trainer.global_step
        # Several updates on one rollout move the step by more than one.
        crossed = step // self.every > (step - pl_module.updates_per_rollout) // self.every
        if crossed or step >= pl_module.max_steps:
            self.validate(trainer, pl_module)

    def validate(self, trainer: L.Trainer, module: BiCoTModule) -> None:
        """One validation: figures to the loggers, weights to disk if they are the best so far."""
        start = time.perf_counter()
        try:
            with phase(f"validation at step {trainer.global_step}"):
                evaluation = self._evaluate(module)
        except RewardError as error:
            where = f"validation at step {trainer.global_step}"
            raise RewardError(error.expert, f"{where}: {error.problem}", error.prompt) from error
        except StopRequested:
            if trainer.global_step == 0:
                raise
            self.pending = True  # a half validation says nothing; the resumed run makes it whole
            trainer.should_stop = True
            return
        self.pending = False
        figures = evaluation.means()
        step = trainer.global_step
        self.history[step] = figures
        if self.watch is not None:
            self.watch.validated(step, told_nothing(evaluation.samples, module.rewards.names, module.rewards.problems))
        for logger in trainer.loggers:
            logger.log_metrics({f"validation/{name}": value for name, value in figures.items()}, step=step)
        if trainer.is_global_zero:
            with phase("drawing the validation's samples"):
                self.sheets.write(step, figures, trainer.loggers)
        if self.best is None or figures[self._figure(figures)] > self.best:
            self.best, self.best_step = figures[self._figure(figures)], step
            with phase("writing the best weights"):
                save_weights(self.weights, module, trainer.is_global_zero)
        shown = ", ".join(f"{n} {figures[n]:.3f}" for n in ("reward", "all_correct") if n in figures)
        say(f"validation at step {step}: {shown} ({len(evaluation.samples)} prompts)")
        self.seconds += time.perf_counter() - start

    def _figure(self, figures: dict[str, float]) -> str:
        if self.monitor not in figures:
            raise UserError(f"evaluation.monitor={self.monitor}: expected one of {', '.join(sorted(figures))}")
        return self.monitor

    def _evaluate(self, module: BiCoTModule) -> Evaluation:
        return evaluate(
            module.policy,
            module.policy.decoder(),
            module.rewards,
            self.records,
            self.settings,
            "validation",
            between=self.stop.check,
            seen=self.sheets.take,
        )


def save_weights(path: Path, module: BiCoTModule, writes: bool = True) -> None:
    """The trained parameters as safetensors, written whole, with their checksum, by the rank that `writes`.

    All ranks at once, for weights that are cut over ranks are gathered. Raises CannotSave.
    """
    from safetensors.torch import save_file

    state = module.trained_state()
    if not writes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with saving(path):
        save_file({name: value.contiguous() for name, value in state.items()}, str(partial))
        sync_file(partial)
        put_in_place(partial, path, file_digest(partial))


def load_weights(path: Path, module: BiCoTModule) -> None:
    """Put back what `save_weights` wrote; raises DamagedFile if it is not that any more."""
    require_sound(path)
    module.load_trained_state(read_weights(path, "it was replaced while the run went on; resume from the checkpoint"))
