"""Standard output and error that somebody may close (``| head``, a terminal that is gone) without ending the program.

A write that nobody can read goes nowhere from then on, and whoever wants to know is told, once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# A pipe without a reader; a terminal that hung up.
CLOSED = (errno.EPIPE, errno.EIO)


class Watched:
    """A text stream whose reader may go away; everything but writing and flushing is the stream's own."""

    def __init__(self, stream: Any, closed: Callable[[], object]) -> None:
        self._stream = stream
        self._closed = closed

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lost(self, error: OSError) -> None:
        if error.errno not in CLOSED:
            raise error
        send_nowhere(self._stream)
        self._closed()


def send_nowhere(stream: Any) -> None:
    """Let what is written to `stream` from now on, and what waits in it, go to the null device."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def watched_output(closed: Callable[[], object]) -> Iterator[None]:
    """Watch standard output and error while the block runs; `closed` is called when one of them turns out closed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Watched(sys.stdout, closed), Watched(sys.stderr, closed)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
