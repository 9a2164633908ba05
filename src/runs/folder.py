"""The run folder: its paths; files are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config.errors import UserError
from src.runs.sound_files import partial_path, saving

PREVIOUS = "previous.ckpt"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths inside one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def before(self) -> Path:
        """The report on the test prompts before training, kept for a resumed run."""
        return self.path / "before.json"

    @property
    def mlflow(self) -> Path:
        """The MLflow run of this run, and what it starts with."""
        return self.path / "mlflow.json"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the last."""
        return self.last_checkpoint.with_name(PREVIOUS)

    def checkpoints(self) -> list[Path]:
        """The existing checkpoints, newest first."""
        return [path for path in (self.last_checkpoint, self.previous_checkpoint) if path.is_file()]

    @property
    def best_weights(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def before_is_whole(self) -> bool:
        """Whether the report before training is complete; if not, all of it is made again."""
        return all(path.is_file() for path in (self.before, self.test_samples("before"), self.samples("before")))

    def what_is_left(self) -> str:
        """For the user of a run that ended early: what to resume from, and how."""
        found = self.checkpoints()
        if not found:
            return f"no checkpoint was written yet in {self.path}"
        return f"the last good checkpoint is {found[0]}; the same command with resume={self.path} goes on from it"

    def read_summary(self) -> dict[str, Any] | None:
        """The summary; None where there is none. Raises UserError for one that is damaged or of another form."""
        from src.runs.files import read_summary

        return read_summary(self)

    def samples(self, when: str) -> Path:
        """The sheet of samples, `when` is "before" or "after"."""
        return self.path / f"samples_{when}.png"

    def validation_samples(self, step: int) -> Path:
        """The sheet of what a validation drew."""
        return self.path / "samples" / f"step_{step:06d}.png"

    def validation_sheets(self) -> dict[int, Path]:
        """The sheets of the validations so far, by step."""
        found = sorted(self.validation_samples(0).parent.glob("step_*.png"))
        return {int(path.stem.removeprefix("step_")): path for path in found}

    def test_samples(self, when: str) -> Path:
        """Every evaluated test prompt with its plan and scores, a JSON object a line; `when` as for `samples`."""
        return self.path / f"test_{when}.jsonl"


def leads_out(folder: Path, path: Path) -> Path | None:
    """The first link in `path` (a file, or a folder with its content) that leads out of `folder`, or None."""
    home = folder.resolve()
    for one in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not one.resolve().is_relative_to(home):
            return one
    return None


def remove_partial_files(run: RunFolder) -> None:
    """Delete half-written files of a killed process; only the run's owner may call this."""
    for folder in (run.path, run.last_checkpoint.parent, run.validation_samples(0).parent):
        for path in folder.glob("*.partial"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it appears whole: a partial file first, then a rename; raises CannotSave."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def newest_unfinished(root: Path, name: str, suffix: str = "") -> RunFolder | None:
    """The newest folder ``<name>-<time><suffix>`` under `root` that has a checkpoint and no finished summary.

    A SLURM job's number may replace the time; ``.2`` and so on follows if another run had the name already.
    """
    stamp = r"-(?:\d{8}-\d{6}|job\d+\.\d+)(?:\.\d+)?"
    pattern = re.compile(re.escape(name) + stamp + re.escape(suffix))
    candidates = [
        RunFolder(path)
        for path in (root.iterdir() if root.is_dir() else ())
        if pattern.fullmatch(path.name) and RunFolder(path).checkpoints() and not _finished(RunFolder(path))
    ]
    return max(candidates, key=lambda run: run.checkpoints()[0].stat().st_mtime, default=None)


def _finished(run: RunFolder) -> bool:
    try:
        summary = run.read_summary()
    except UserError:
        return False
    return summary is not None and bool(summary.get("finished"))
