"""What the run is doing right now, for whoever has to say so when it does not go on.

One process does one thing at a time: phases nest, and entering or leaving one is progress. The watchdog
(`src.training.watchdog`) looks from another thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_entered: list[str] = []
_moved = time.monotonic()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Be in phase `name`, as a person would call it ("rolling out plans"), while the block runs."""
    global _moved
    _entered.append(name)
    _moved = time.monotonic()
    try:
        yield
    finally:
        _entered.pop()
        _moved = time.monotonic()


def progress() -> None:
    """Say that the present phase goes on."""
    global _moved
    _moved = time.monotonic()


def current() -> str:
    """The phases entered, outermost first: ``step 3, scoring (expert 'detector', prompt 'two cats')``."""
    return ", ".join(tuple(_entered)) or "between phases"


def seconds_still() -> float:
    """How long ago the last phase was entered or left."""
    return time.monotonic() - _moved
