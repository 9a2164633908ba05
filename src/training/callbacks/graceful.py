"""Ctrl-C, SIGTERM, a closed terminal or output end a run between two prompt batches, with everything saved."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import distributed

from src.runs.console import say

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Somebody asks for these; a hang-up only says that nobody looks any more, and often comes twice, or with a SIGTERM.
ASKED = (signal.SIGINT, signal.SIGTERM)
CLOSED_OUTPUT = 13  # SIGPIPE's number: how a shell tells of a program that wrote to a closed pipe


class StopRequested(BaseException):
    """Raised where a requested stop cannot wait for the end of a step; carries the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by signal {code - 128}")
        self.code = code


class GracefulStop(Callback):
    """The first signal lets the running step finish, then training ends as if it were complete.

    So does an output that nobody reads any more (`output_closed`). A second Ctrl-C or SIGTERM stops at once (what is
    saved stays valid). `code` is the exit code that says so (128 + signal), None while nothing was received.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._asked = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over. Lightning registers its own handler, which ends the run in mid-step, before this."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's, say
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
        if number in ASKED and self._asked:
            raise StopRequested(self.code or 128 + number)
        self._asked = self._asked or number in ASKED
        if self.code is None:
            self.code = 128 + number
            with suppress(RuntimeError):  # it came in the middle of a print, and prints do not nest
                say("Stopping after this step, then saving; once more stops at once.")

    def output_closed(self) -> None:
        """Standard output or error is closed: stop as for a signal."""
        if self.code is None:
            self.code = 128 + CLOSED_OUTPUT
            print("The output is closed: stopping after this step, then saving.", file=sys.stderr, flush=True)

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
