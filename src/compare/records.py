"""One run as a comparison sees it, wherever it was read from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

from src.runs.files import number

Series = tuple[tuple[int, float], ...]  # (step, value), steps ascending

# Settings for the run folder and display, and the seed: runs that differ only in these are repeats.
NOT_COMPARED = ("run.name", "root", "dir", "run.seed", "progress_bar")


@dataclass(frozen=True, slots=True)
class PromptScores:
    """One evaluated sample of a test prompt: its figures by name (reward, experts' scores, details)."""

    index: int
    prompt: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run, finished or not.

    status: finished, unfinished, interrupted, running, failed or killed. folder: where its run folder is on this
    machine; None where it is not. parameters: flat and short (`src.loggers.facts.flat_parameters`). metrics: the names
    logged; history: a metric's values by step. scores: of the test prompts after training, empty where none are kept.
    The costs are None if unknown. commit: of the code, ``-dirty`` at its end where files differed.
    """

    name: str
    status: str
    folder: Path | None
    parameters: Mapping[str, str]
    metrics: frozenset[str]
    history: Callable[[str], Series]
    scores: tuple[PromptScores, ...] = ()
    steps: int = 0
    seconds_per_step: float | None = None
    seconds_total: float | None = None
    peak_memory_gib: float | None = None
    commit: str | None = None
    run_id: str | None = None

    @property
    def seed(self) -> str:
        return self.parameters.get("run.seed", "?")

    @property
    def compared(self) -> dict[str, str]:
        """The settings that tell it from another experiment."""
        return {name: value for name, value in self.parameters.items() if name not in NOT_COMPARED}


def read_scores(text: str) -> tuple[PromptScores, ...]:
    """The lines of a run folder's ``test_after.jsonl``; raises ValueError, KeyError or TypeError for other ones."""
    found = []
    for line in filter(None, text.split("\n")):
        entry = json.loads(line)
        figures = {
            "reward": entry["reward"],
            **entry["scores"],
            **entry["details"],
            "plan/ended": float(entry["ended"]),
        }
        for name, value in figures.items():
            number(value, name, none=True)
        found.append(PromptScores(int(entry["index"]), str(entry["prompt"]), figures))
    return tuple(found)


def finite(series: Iterable[tuple[int, float]]) -> Series:
    """A series without its NaN values."""
    return tuple((step, value) for step, value in series if isfinite(value))


def by_prompt(runs: Iterable[Sequence[PromptScores]], figure: str) -> dict[tuple[int, str], float]:
    """A figure's mean at each prompt, over its samples and over the runs: a prompt's samples are not independent.

    Prompts that the figure does not apply to are left out.
    """
    found: dict[tuple[int, str], list[float]] = {}
    for scores in runs:
        for one in scores:
            if figure in one.figures:
                found.setdefault((one.index, one.prompt), []).append(one.figures[figure])
    return {key: fmean(values) for key, values in found.items()}
