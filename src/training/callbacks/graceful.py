"""Ctrl-C and SIGTERM end a run between two prompt batches, with everything saved."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from src.training.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(BaseException):
    """Raised where a requested stop cannot wait for the end of a step; carries the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by signal {code - 128}")
        self.code = code


class GracefulStop(Callback):
    """The first signal lets the running step finish, then training ends as if it were complete.

    A second signal stops at once (what is saved stays valid). `code` is the exit code that says so
    (128 + signal), None while nothing was received.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over; after Lightning, whose own handler would end the run in the middle of a step."""
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._received)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None:
            raise StopRequested(self.code)
        self.code = 128 + number
        say("Stopping after this step, then saving; once more stops at once.")

    def check(self, *_: Any) -> None:
        """Raise StopRequested if a signal came; for long work outside of training steps."""
        if self.code is not None:
            raise StopRequested(self.code)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.code is not None, all=False)
        if stop:
            trainer.should_stop = True
