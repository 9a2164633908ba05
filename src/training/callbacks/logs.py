"""Every step's figures to the loggers, and a sample of rollouts to rollouts.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.runs.files import read_rollouts
from src.runs.folder import write_text
from src.runs.metrics_file import MetricsFile
from src.runs.sound_files import saving
from src.training.module import BiCoTModule
from src.values import PromptBatch


class StepLogs(Callback):
    """Logs the step metrics of rank 0, and each `rollouts_every` steps one group's plans and scores."""

    def __init__(self, rollouts: Path, rollouts_every: int) -> None:
        self.rollouts = rollouts
        self.rollouts_every = rollouts_every

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """On a resume, drop what lies behind the checkpoint: it will be made again."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.drop_after(trainer.global_step)
        if self.rollouts.is_file():
            kept = [line for step, line in read_rollouts(self.rollouts) if step <= trainer.global_step]
            write_text(self.rollouts, "".join(line + "\n" for line in kept))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: BiCoTModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        figures = {**pl_module.step_metrics, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        if trainer.is_global_zero and self._due(step, pl_module.updates_per_rollout):
            self._write_group(step, pl_module)

    def _due(self, step: int, updates: int) -> bool:
        """Whether a multiple of `rollouts_every` was reached since the last batch; the first batch always is."""
        return (step - 1) // self.rollouts_every != (step - 1 - updates) // self.rollouts_every

    def _write_group(self, step: int, module: BiCoTModule) -> None:
        collected = module.collected
        if collected is None:
            return
        report, plans = collected.experience.report, collected.rollouts.plans
        with saving(self.rollouts), self.rollouts.open("a", encoding="utf-8") as file:
            for row in range(collected.experience.group_size):
                entry = {
                    "step": step,
                    "prompt": collected.records[0].prompt,
                    "kind": collected.records[0].task_type,
                    "plan": plans[row],
                    "ended": bool(collected.rollouts.ended[row]),
                    "reward": round(float(report.raw[row]), 4) if bool(report.judged[row]) else None,
                    "scores": {
                        name: round(float(report.scores[row, column]), 4)
                        for column, name in enumerate(report.names)
                        if bool(report.applicable[row, column])
                    },
                }
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
