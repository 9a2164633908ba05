"""The resumable checkpoint, taken between prompt batches only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.training.module import BiCoTModule


class ResumableCheckpoint(Callback):
    """Writes Lightning's checkpoint every `every` optimiser steps, at the end, and when a stop is requested.

    The file is written beside its place and then renamed, so there is always one whole checkpoint.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BiCoTModule, *_: Any) -> None:
        step = trainer.global_step
        crossed = step // self.every > (step - pl_module.updates_per_rollout) // self.every
        if crossed or trainer.should_stop or step >= pl_module.max_steps:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """One checkpoint of the run as it is now, with the logs up to it on disk."""
        # First the logs: a kill in between may leave rows too many (dropped on a resume), never too few.
        for logger in trainer.loggers:
            logger.save()
        partial = self.path.with_name(self.path.name + ".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            partial.replace(self.path)
        trainer.strategy.barrier("checkpoint")
