"""Names the current phase of the run, for error messages and the watchdog.

One process does one thing at a time: phases nest, and entering or leaving one is progress. The watchdog
(`src.training.watchdog`) looks from another thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_entered: list[str] = []
_moves = 0


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Be in phase `name`, as a person would call it ("rolling out plans"), while the block runs."""
    global _moves
    _entered.append(name)
    _moves += 1
    try:
        yield
    finally:
        _entered.pop()
        _moves += 1


def progress() -> None:
    """Report progress within the current phase."""
    global _moves
    _moves += 1


def current() -> str:
    """The phases entered, outermost first: ``step 3, scoring (expert 'detector', prompt 'two cats')``."""
    return ", ".join(tuple(_entered)) or "between phases"


def moves() -> int:
    """Counts phases entered and left and progress reports; a change means progress."""
    return _moves
