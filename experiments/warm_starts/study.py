"""What RL mends: a warm start that misreads systematically against one that misreads at random.

The shipped checkpoint takes each form of prompt in one fixed wrong way half of the time. The other one, made here by
the same recipe when it is missing (about ten minutes of one core), draws any other prompt's picture as often. The
control of both is sampling at a lower temperature, without any training: temperatures.csv, temperatures.png.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.bicot_lora.study import grid
from experiments.report import write_csv
from experiments.runner import Arm, Study, main

NOISY = Path("runs/noisy_checkpoint")
TEMPERATURES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
STUDY = Study(
    folder=Path(__file__).parent,
    arms=(Arm("systematic"), Arm("random", (f"model.path={NOISY}",))),
    baseline="systematic",
)


def make_noisy_checkpoint() -> None:
    """The recipe of the shipped checkpoint with other wrong readings, and without its drawing flaw."""
    if not (NOISY / "RECIPE.json").is_file():
        flaws = ["--misreading", "random", "--misdraw", "0"]
        subprocess.run([sys.executable, "-m", "src.shapes.pretrain", "--out", str(NOISY), *flaws], check=True)


def temperatures(root: Path, seeds: Iterable[int], out: Path) -> None:
    """All-correct on the test prompts at each temperature, of both bases and of their adapters."""
    rows: list[dict[str, object]] = []
    for arm in STUDY.arms:
        adapters = [root / STUDY.name / f"{arm.name}-seed{seed}" / "adapter" for seed in seeds]
        for adapter in (None, *adapters):
            weights = "base" if adapter is None else adapter.parent.name
            measured = grid(adapter, arm.overrides, TEMPERATURES, (1.5,))
            rows += [{"warm_start": arm.name, "weights": weights, **row} for row in measured]
    write_csv(out / "temperatures.csv", rows)
    draw(rows, out / "temperatures.png")


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """One panel a warm start: the base's curve over temperature, and its adapters'."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, arm in zip(figure.subplots(1, 2, sharey=True), STUDY.arms, strict=True):
        mine = [row for row in rows if row["warm_start"] == arm.name]
        for weights in dict.fromkeys(str(row["weights"]) for row in mine):
            points = [(row["temperature"], row["all_correct"]) for row in mine if row["weights"] == weights]
            base = weights == "base"
            label = "base, not trained" if base else "after RL, each seed" if weights.endswith("seed0") else None
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color="C0" if base else "C1", label=label)
        axis.set(title=f"{arm.name} misreadings", xlabel="sampling temperature, both levels", ylim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    options = main(STUDY, make_noisy_checkpoint)
    temperatures(options.root, options.seeds, options.out)
