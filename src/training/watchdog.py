"""A run that does not go on is ended, saying where it stands."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from src import phases

EXIT_STILL = 124  # as of coreutils' `timeout`


class Watchdog:
    """Ends the process with code 124 when no phase (`src.phases`) was entered or left for `seconds`.

    It says which phase that is, dumps every thread's stack and leaves by ``os._exit``: what hangs cannot be asked to
    end. Code that hangs without giving Python's lock back holds this thread, too; for that a timer outside of Python
    dumps the stacks and exits with code 1, after one and a half times as long. What is on disk stays valid. Under
    None it does nothing. kept: tells what the run left.
    """

    def __init__(self, seconds: float | None, kept: Callable[[], str]) -> None:
        self.seconds = seconds
        self.kept = kept
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.seconds is not None:
            phases.progress()
            threading.Thread(target=self._watch, args=(self.seconds,), name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self, seconds: float) -> None:
        errors = _real_stderr()
        polls = 0
        while not self._over.is_set():
            if errors is not None and polls % 16 == 0:
                faulthandler.dump_traceback_later(1.5 * seconds, exit=True, file=errors)
            if phases.seconds_still() > seconds:
                self._end(seconds, errors)
            polls += 1
            self._over.wait(seconds / 64)
        faulthandler.cancel_dump_traceback_later()

    def _end(self, seconds: float, errors: TextIO | None) -> None:
        if errors is not None:
            print(
                f"error: no progress for {phases.seconds_still():.0f} s in: {phases.current()}; the run is ended"
                f" (watchdog.seconds={seconds:g}; null: never); {self.kept()}; the stacks:",
                file=errors,
                flush=True,
            )
            faulthandler.dump_traceback(file=errors, all_threads=True)
        os._exit(EXIT_STILL)


def _real_stderr() -> TextIO | None:
    """The stream behind whatever stands in for standard error; None where there is none with a descriptor."""
    try:
        stream = sys.__stderr__
        if stream is not None:
            stream.fileno()
    except (OSError, ValueError):
        return None
    return stream
