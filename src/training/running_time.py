"""Time in which this process was running: a wait that took far too long was a suspension, and is not counted.

Ctrl-Z and fg, SLURM's suspend and a closed laptop stop a process without a word. The clocks go on meanwhile; whoever
ends what stands still for too long would end such a run at the moment it goes on.
"""

from __future__ import annotations

import time

# A tick that is later than this many times its interval was no tick of a running process.
LATE = 2


class RunningTime:
    """A clock that is asked about every `interval` seconds and counts at most `LATE` of them a time."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.seconds = 0.0
        self._last = time.monotonic()

    def tick(self) -> float:
        """The seconds counted since the last tick."""
        now = time.monotonic()
        passed = min(now - self._last, LATE * self.interval)
        self._last = now
        self.seconds += passed
        return passed
