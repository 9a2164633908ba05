"""Training runs in processes of their own that need not import everything again: forks of the test's process."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Imported here so that no fork has to.
import src.training.session  # noqa: F401
from src.cli import command as cli
from src.train import COMMAND


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended; code is negative for a signal, as subprocess has it."""

    code: int
    output: str


def forked(arguments: Sequence[str], log: Path, prepare: Callable[[], object] = lambda: None) -> Ended:
    """``python -m src.train ARGUMENTS`` in a fork, after `prepare` in there; output and errors go to `log`."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(list(arguments), log, prepare))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(log.read_text())
    return Ended(process.exitcode, log.read_text())


def _child(arguments: list[str], log: Path, prepare: Callable[[], object]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    prepare()
    sys.exit(cli.run(COMMAND, arguments))
