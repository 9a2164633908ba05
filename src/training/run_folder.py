"""The run folder: what stands where, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_weights(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def read_summary(self) -> dict[str, Any] | None:
        """The summary; None where there is none or it cannot be read."""
        try:
            value = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def samples(self, when: str) -> Path:
        """The sheet of samples, `when` is "before" or "after"."""
        return self.path / f"samples_{when}.png"

    def validation_samples(self, step: int) -> Path:
        """The sheet of what a validation drew."""
        return self.path / "samples" / f"step_{step:06d}.png"

    def test_samples(self, when: str) -> Path:
        """Every evaluated test prompt with its plan and scores, a JSON object a line; `when` as for `samples`."""
        return self.path / f"test_{when}.jsonl"


def write_text(path: Path, text: str) -> None:
    """Write a file so that it appears whole: a partial file first, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def newest_unfinished(root: Path, name: str, suffix: str = "") -> RunFolder | None:
    """The newest folder ``<name>-<time><suffix>`` under `root` that has a checkpoint and no finished summary."""
    pattern = re.compile(re.escape(name) + r"-\d{8}-\d{6}" + re.escape(suffix))
    candidates = [
        RunFolder(path)
        for path in (root.iterdir() if root.is_dir() else ())
        if pattern.fullmatch(path.name) and RunFolder(path).last_checkpoint.is_file() and not _finished(RunFolder(path))
    ]
    return max(candidates, key=lambda run: run.last_checkpoint.stat().st_mtime, default=None)


def _finished(run: RunFolder) -> bool:
    summary = run.read_summary()
    return summary is not None and bool(summary.get("finished"))
