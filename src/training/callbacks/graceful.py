"""Ctrl-C and SIGTERM end a run between two prompt batches, with everything saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import distributed

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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over. Lightning registers its own handler, which ends the run in mid-step, before this."""
        for number in SIGNALS:
            signal.signal(number, self._received)

    @contextmanager
    def handlers_kept(self) -> Iterator[None]:
        """Give the signals back, on leaving, to whoever had them on entering."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None:
            raise StopRequested(self.code)
        self.code = 128 + number
        say("Stopping after this step, then saving; once more stops at once.")

    def check(self, *_: Any) -> None:
        """Raise StopRequested if a signal came; for long work outside of training steps."""
        # One of several ranks must not leave the others waiting for it; there a stop waits for the step's end.
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if self.code is not None and not several:
            raise StopRequested(self.code)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self.code is not None, all=False)
        if stop:
            trainer.should_stop = True
