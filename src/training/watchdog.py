"""A run that does not go on is ended, saying where it stands."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from src.runs import phases
from src.training.running_time import RunningTime

EXIT_STILL = 124  # as of coreutils' `timeout`
STALL_WATCH = Path(__file__).with_name("stall_watch.py")


class Watchdog:
    """Ends the process with code 124 when no phase (`src.runs.phases`) was entered or left for `seconds`.

    It says which phase that is, dumps every thread's stack and leaves by ``os._exit``: what hangs cannot be asked to
    end. Code that hangs without giving Python's lock back holds this thread, too; for that a process beside this one
    (`stall_watch`) dumps the stacks and ends it by SIGABRT (code 134), after one and a half times as long. Time in
    which this process was suspended is not counted. What is on disk stays valid. Under None it does nothing. kept:
    tells what the run left.
    """

    def __init__(self, seconds: float | None, kept: Callable[[], str]) -> None:
        self.seconds = seconds
        self.kept = kept
        self._over = threading.Event()
        self._beside: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watchdog:
        if self.seconds is not None:
            phases.progress()
            errors = _real_stderr()
            if errors is not None and os.name == "posix":
                faulthandler.disable()  # whoever had it on had it write elsewhere
                faulthandler.enable(file=errors)
                self._beside = _stall_watch(1.5 * self.seconds, errors)
            threading.Thread(target=self._watch, args=(self.seconds, errors), name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._beside is not None:
            try:
                self._beside.communicate(timeout=10)  # closes its pipe, on which it ends
            except (OSError, ValueError, subprocess.TimeoutExpired):
                self._beside.kill()

    def _watch(self, seconds: float, errors: TextIO | None) -> None:
        clock = RunningTime(seconds / 64)
        moves, still = phases.moves(), 0.0
        while not self._over.wait(clock.interval):
            passed, before, moves = clock.tick(), moves, phases.moves()
            still = still + passed if moves == before else 0.0
            self._give_sign()
            if still > seconds:
                self._end(seconds, still, errors)

    def _give_sign(self) -> None:
        if self._beside is not None and self._beside.stdin is not None:
            with suppress(OSError, ValueError):  # it was ended by somebody else, or the run is over
                self._beside.stdin.write(b".")

    def _end(self, seconds: float, still: float, errors: TextIO | None) -> None:
        if errors is not None:
            with suppress(OSError):  # a terminal that is gone
                print(
                    f"error: no progress for {still:.0f} s in: {phases.current()}; the run is ended"
                    f" (watchdog.seconds={seconds:g}; null: never); {self.kept()}; the stacks:",
                    file=errors,
                    flush=True,
                )
                faulthandler.dump_traceback(file=errors, all_threads=True)
        os._exit(EXIT_STILL)


def _stall_watch(seconds: float, errors: TextIO) -> subprocess.Popen[bytes]:
    """In this process's group: what suspends one suspends the other."""
    command = [sys.executable, "-S", "-E", str(STALL_WATCH), str(os.getpid()), str(seconds)]
    beside = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors.fileno(), bufsize=0
    )
    assert beside.stdin is not None
    os.set_blocking(beside.stdin.fileno(), False)  # nothing the run waits for
    return beside


def _real_stderr() -> TextIO | None:
    """The stream behind whatever stands in for standard error; None where there is none with a descriptor."""
    try:
        stream = sys.__stderr__
        if stream is not None:
            stream.fileno()
    except (OSError, ValueError):
        return None
    return stream
