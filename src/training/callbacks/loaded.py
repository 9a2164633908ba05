"""The check of what was loaded, once everything is in its final place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.training.module import BiCoTModule

TrainingContext = Callable[[], AbstractContextManager[Any]]


class CheckLoaded(Callback):
    """Calls `check` with the policy, and with what a training pass runs under, before anything is sampled.

    The policy is on its device by then, cut or copied as the strategy asks for, and has a checkpoint's weights. What
    is raised ends the run.
    """

    def __init__(self, check: Callable[[Any, TrainingContext], None]) -> None:
        self.check = check

    def on_train_start(self, trainer: L.Trainer, pl_module: BiCoTModule) -> None:
        self.check(pl_module.policy, trainer.precision_plugin.forward_context)
