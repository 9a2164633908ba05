"""Runs a study: arms x seeds of `src.train` at equal optimiser steps, then its table, CSV files and plot.

A study is a file of arms that calls `main`:

    python -m experiments.levels.study                   # all of it, from a checkout
    python -m experiments.levels.study --parallel 1      # one run at a time, on all cores
    python -m experiments.levels.study --report-only     # table and plot of the runs that are finished

Every run is a process of its own with a folder of its own, ``<root>/<study>/<arm>-seed<n>``. A study that was stopped
goes on where it stood: finished runs are kept, an unfinished one is resumed. A run that another study has finished
with the same settings is copied from there. At the end all runs stand in one MLflow experiment, ``study_<name>``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from experiments.report import report
from src.runs.folder import RunFolder, write_json

# Every run of every study, unless its arm says otherwise: shorter than the main job, fewer validations.
COMMON = ("experiment=bicot_lora", "evaluation.every=25", "evaluation.validation_prompts=64", "checkpoint.every=25")
SETTINGS = "study.json"  # in a run's folder: what it was started with


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting that is compared: its name in tables, and what it changes of the main job.

    `overrides` come after `COMMON`; an ``experiment=`` among them takes the main job's place. `steps` are the study's
    unless the arm is about them.
    """

    name: str
    overrides: tuple[str, ...] = ()
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """A question asked of several arms.

    folder: where the study's files stand. baseline: the arm that differences are taken to. figures: further columns,
    `summary.json`'s names.
    """

    folder: Path
    arms: tuple[Arm, ...]
    baseline: str
    steps: int = 100
    figures: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name


def settings(arm: Arm, seed: int, steps: int) -> list[str]:
    """The overrides that make a run what it is; where it lives is not among them."""
    own = any(override.startswith("experiment=") for override in arm.overrides)
    common = [override for override in COMMON if not (own and override.startswith("experiment="))]
    return [*common, *arm.overrides, f"trainer.max_steps={arm.steps or steps}", f"run.seed={seed}"]


def finished(folder: Path) -> bool:
    summary = RunFolder(folder).read_summary()
    return bool(summary and summary["finished"])


def known_settings(folder: Path) -> list[str] | None:
    """What the run in `folder` was started with; None where there is none."""
    try:
        found: list[str] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return found
    except OSError:
        return None


def run(folder: Path, root: Path, wanted: list[str]) -> str:
    """See that a finished run with these settings stands in `folder`; returns what was done for it.

    Raises:
        SystemExit: if there is another run, or if training fails.
    """
    known = known_settings(folder)
    if known is not None and known != wanted:
        sys.exit(f"{folder}: was run with {' '.join(known)}; remove it, or choose another --root")
    if known is not None and finished(folder):
        return "kept"
    for other in sorted(root.glob(f"*/*/{SETTINGS}")):
        if other.parent != folder and known_settings(other.parent) == wanted and finished(other.parent):
            shutil.rmtree(folder, ignore_errors=True)
            # Its MLflow run belongs to the other study.
            shutil.copytree(other.parent, folder, ignore=shutil.ignore_patterns("mlflow.json"))
            return f"copied from {other.parent}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, wanted)
    resume = [f"resume={folder}"] if RunFolder(folder).checkpoints() else []
    own = [f"run.dir={folder}", f"run.name={folder.name}", "logger=csv", "trainer.progress_bar=false"]
    command = [sys.executable, "-m", "src.train", *wanted, *own, *resume]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        sys.exit(f"{folder}: exit code {code}; see {folder.parent / folder.name}.log")
    return "trained"


def upload(study: Study, folders: Sequence[Path]) -> None:
    """Put the runs side by side in MLflow."""
    store = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    for folder in folders:
        where = [f"run={folder}", f"tracking_uri={store}", f"experiment=study_{study.name}"]
        subprocess.run([sys.executable, "-m", "src.upload_metrics", *where], check=True)
    print(f"mlflow ui --backend-store-uri {store}    # experiment study_{study.name}")


def main(study: Study, prepare: Callable[[], None] | None = None) -> argparse.Namespace:
    """The command line of a study; returns its options. `prepare` makes what the runs start from, before the first."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{study.name}.study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = [arm.name for arm in study.arms]
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=" ".join(names))
    parser.add_argument("--steps", type=int, default=study.steps, help="optimiser steps of every run")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, a thread each; 1: all threads for one")
    parser.add_argument("--root", type=Path, default=Path("runs/studies"))
    parser.add_argument("--out", type=Path, default=study.folder)
    parser.add_argument("--report-only", action="store_true", help="of the runs that are finished")
    parser.add_argument("--no-mlflow", action="store_true")
    options = parser.parse_args()
    root, chosen = options.root.resolve(), [arm for arm in study.arms if arm.name in options.arms]
    jobs = [
        (root / study.name / f"{arm.name}-seed{seed}", settings(arm, seed, options.steps))
        for seed, arm in product(options.seeds, chosen)
    ]
    if not options.report_only:
        if prepare is not None:
            prepare()
        if options.parallel > 1:
            os.environ["OMP_NUM_THREADS"] = "1"
        with ThreadPoolExecutor(options.parallel) as pool:
            for (folder, _), done in zip(jobs, pool.map(lambda job: run(job[0], root, job[1]), jobs), strict=True):
                print(f"{folder.name}: {done}", flush=True)
    arms = {
        arm.name: [folder for folder, _ in jobs if folder.name.rpartition("-seed")[0] == arm.name and finished(folder)]
        for arm in chosen
    }
    report({name: folders for name, folders in arms.items() if folders}, study.baseline, study.figures, options.out)
    if not options.no_mlflow:
        upload(study, [folder for folders in arms.values() for folder in folders])
    return options
