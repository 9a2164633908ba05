"""The resumable checkpoint, taken between prompt batches only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.runs.phases import phase
from src.training.callbacks.validation import BestByValidation
from src.training.module import BiCoTModule


class ResumableCheckpoint(Callback):
    """Writes Lightning's checkpoint every `every` optimiser steps, with new best weights, at the end and at a stop.

    How it reaches the disk is `SoundCheckpointIO`'s to say.
    """

    def __init__(self, path: Path, every: int, validation: BestByValidation) -> None:
        self.path = path
        self.every = every
        self.validation = validation

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BiCoTModule, *_: Any) -> None:
        step = trainer.global_step
        crossed = step // self.every > (step - pl_module.updates_per_rollout) // self.every
        # New best weights on disk belong to a state that can be resumed from.
        best = self.validation.best_step == step
        if crossed or best or trainer.should_stop or step >= pl_module.max_steps:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """One checkpoint of the run as it is now, with the logs up to it on disk."""
        # First the logs: a kill in between may leave rows too many (dropped on a resume), never too few.
        for logger in trainer.loggers:
            logger.save()
        with phase("writing a checkpoint"):
            trainer.save_checkpoint(self.path, weights_only=False)
