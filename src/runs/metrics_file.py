"""metrics.csv of the run folder: one row per step, columns in order of appearance, kept across resumes."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.runs.files import read_metrics
from src.runs.sound_files import CannotSave, partial_path, saving


class MetricsFile(Logger):
    """A Lightning logger that keeps all rows and writes the file whole, atomically.

    Lightning's own CSVLogger deletes an existing file; a resumed run must append to it.

    Raises:
        UserError: if the file at `path` is not the metrics.csv of a run.
    """

    def __init__(self, path: Path, flush_every: int = 20) -> None:
        super().__init__()
        self.path = path
        self.flush_every = flush_every
        self.rows: dict[int, dict[str, Any]] = {}
        self._unsaved = 0
        if path.is_file():
            self.rows = {step: dict(row) for step, row in read_metrics(path).items()}

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The resolved config has its own file in the run folder."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(int(step or 0), {}).update(metrics)
        self._unsaved += 1
        if self._unsaved >= self.flush_every:
            self.save()

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Forget rows after `step`: a resumed run makes them again."""
        self.rows = {at: row for at, row in self.rows.items() if at <= step}

    @rank_zero_only
    def drop_figures(self, names: tuple[str, ...], after: int) -> None:
        """Forget figures with this name prefix after step `after`: a resumed run reports them again at its own end."""
        self.rows = {
            at: {name: value for name, value in row.items() if at <= after or not name.startswith(names)}
            for at, row in self.rows.items()
        }

    @rank_zero_only
    def save(self) -> None:
        """Write the file whole; raises CannotSave."""
        columns = ["step", *dict.fromkeys(name for row in self.rows.values() for name in row if name != "step")]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(self.path)
        with saving(self.path):
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows({**row, "step": step} for step, row in sorted(self.rows.items()))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        self._unsaved = 0

    def finalize(self, status: str) -> None:
        try:
            self.save()
        except CannotSave:
            if status == "success":  # otherwise report what ended the run
                raise
