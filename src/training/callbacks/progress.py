"""The progress bar: steps of the whole run, with the figures one watches."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

SHORT = {"plan/kl": "kl plan", "image/kl": "kl image", "seconds": "s/step", "all_correct": "all-correct"}


class StepProgress(TQDMProgressBar):
    """One bar for the run of `batches` prompt batches; its figures have short names and few digits."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    @property
    def total_train_batches(self) -> int:
        """The stream of prompts has no end; the run has."""
        return self.batches

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {SHORT.get(name, name): f"{float(value):.3g}" for name, value in trainer.progress_bar_metrics.items()}
