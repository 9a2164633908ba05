"""The process that writes to MLflow, from the training process's side: a queue to it, and what it answers."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from src.runs.console import say

WRITER = Path(__file__).with_name("mlflow_writer.py")


class NoAnswer(RuntimeError):
    """The writer is busy and did not answer in time."""


class NoServer(RuntimeError):
    """No server answers at the store's address, or the writer itself is gone: not the user's error."""


class WriterProcess:
    """The writer and the two threads that keep this process from ever waiting for it."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        # -P: the script's own folder must not come before the packages it imports.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WRITER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the training process; this one ends after it
            text=True,
            encoding="utf-8",
        )
        self._outgoing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._died: str | None = None
        self.lost = False  # whether something was not written
        for work in (self._send_all, self._receive_all):
            threading.Thread(target=work, name=f"mlflow {work.__name__}", daemon=True).start()

    def send(self, kind: str, content: Any) -> None:
        """Queue a message; returns at once."""
        self._outgoing.put(json.dumps([kind, content], ensure_ascii=False) + "\n")

    def wait_for(self, kind: str, seconds: float) -> str:
        """The text of the next answer of this kind.

        Raises:
            RuntimeError: with what went wrong, if the store refused; NoServer if none answers or the writer died;
                NoAnswer if it took too long.
        """
        until = time.monotonic() + seconds
        while True:
            if self._died is not None and self._answers.empty():
                raise NoServer(self._died)
            try:
                answer, text = self._answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise NoAnswer(f"no answer within {seconds:.0f} s") from None
            if answer == kind:
                return text
            if answer in ("unreachable", "died"):
                raise NoServer(text)
            if answer == "failed":
                raise RuntimeError(text)

    def tell_warnings(self) -> None:
        """Print the writer's warnings since the last call."""
        while not self._warnings.empty():
            say(f"mlflow: {self._warnings.get()} (the run continues; metrics.csv has everything)")

    def close(self) -> None:
        """No message will follow: the writer closes an open run as KILLED and ends."""
        self._outgoing.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the process to end."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _send_all(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (line := self._outgoing.get()) is not None:
                pipe.write(line)
                pipe.flush()
            pipe.close()
        except (BrokenPipeError, ValueError):
            pass  # the receiving thread tells that the process ended

    def _receive_all(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        last = ""
        for line in pipe:
            last, text = json.loads(line)
            if last == "warning":
                self._warnings.put(text)
            elif last == "lost":
                self.lost = True
            else:
                self._answers.put((last, text))
        if last not in ("finished", "failed", "unreachable"):
            self.lost = True
            words = f"its process ended: {self._last_words()}"
            self._warnings.put(words)
            self._answers.put(("died", words))
            self._died = words

    def _last_words(self) -> str:
        self._process.wait(10)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"ended with code {self._process.returncode}"
