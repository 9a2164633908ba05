"""The default job for 2,000 steps: does its memory grow, does it slow down?

    python experiments/soak/soak.py                          # runs, writes memory.csv, seconds.csv, soak.png
    python experiments/soak/soak.py --steps 200 --out /tmp   # shorter
    python experiments/soak/soak.py --draw-only runs/soak    # once more from a run that is over

The run is a process of its own, watched from outside every few seconds: resident memory and processor time of the
training process and, apart, of the processes it started (MLflow's writer).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
SECONDS_BETWEEN = 5.0
WARM_UP = 200  # steps before growth is measured: caches fill, the allocator finds its size
BIN = 20  # steps a row of seconds.csv


def watch(command: Sequence[str], metrics: Path, rows: list[dict[str, float]]) -> int:
    """Run `command`, adding a row of memory (MiB) and processor seconds every few seconds; returns its exit code."""
    start = time.monotonic()
    with subprocess.Popen(command) as process:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                helpers = seen.children(recursive=True)
                used = seen.cpu_times()
                rows.append(
                    {
                        "seconds": time.monotonic() - start,
                        "steps_on_disk": steps_in(metrics),
                        "training_mib": seen.memory_info().rss / 2**20,
                        "helpers_mib": sum(helper.memory_info().rss for helper in helpers) / 2**20,
                        "processor_seconds": used.user + used.system,
                    }
                )
            except psutil.Error:  # it ended between two looks
                pass
            time.sleep(SECONDS_BETWEEN)
        return process.returncode


def steps_in(metrics: Path) -> int:
    """The last step in metrics.csv, which grows with every checkpoint."""
    if not metrics.is_file():
        return 0
    with metrics.open() as file:
        return max((int(row["step"]) for row in csv.DictReader(file)), default=0)


def with_steps(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Each row's step, from the moments at which metrics.csv grew; rows before the first and after the last go."""
    moments = [
        (row["seconds"], row["steps_on_disk"])
        for before, row in pairwise(rows)
        if row["steps_on_disk"] > before["steps_on_disk"]
    ]
    at, steps = zip(*moments, strict=True)
    kept = [row for row in rows if at[0] <= row["seconds"] <= at[-1]]
    return [{"step": float(np.interp(row["seconds"], at, steps)), **row} for row in kept]


def growth(rows: Sequence[dict[str, float]], column: str) -> float:
    """Least-squares growth of a column after the warm-up, a 100 steps."""
    kept = [(row["step"], row[column]) for row in rows if row["step"] >= WARM_UP]
    steps, values = zip(*kept, strict=True)
    return 100 * float(np.polyfit(steps, values, 1)[0])


def step_seconds(metrics: Path) -> list[dict[str, float]]:
    """The median wall seconds of every `BIN` steps."""
    with metrics.open() as file:
        seconds = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file) if row["seconds"]]
    return [
        {"step": seconds[i][0], "seconds": statistics.median(value for _, value in seconds[i : i + BIN])}
        for i in range(0, len(seconds), BIN)
    ]


def write_csv(path: Path, rows: Sequence[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)


def read_csv(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def draw(memory: Sequence[dict[str, float]], seconds: Sequence[dict[str, float]], path: Path) -> None:
    """Memory and seconds a step over the run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    steps = [row["step"] for row in memory]
    left.plot(steps, [row["training_mib"] for row in memory], label="training process", linewidth=1)
    left.plot(steps, [row["helpers_mib"] for row in memory], label="MLflow's writer", linewidth=1)
    left.axvline(WARM_UP, color="grey", linestyle=":", linewidth=1)
    left.set(title="resident memory, MiB", xlabel="optimiser step", ylim=(0, None))
    left.legend(frameon=False)
    right.plot([row["step"] for row in seconds], [row["seconds"] for row in seconds], label="wall", linewidth=1)
    used = [
        ((before["step"] + after["step"]) / 2, (after["processor_seconds"] - before["processor_seconds"]) / steps)
        for before, after in zip(memory[::20], memory[20::20], strict=False)
        if (steps := after["step"] - before["step"]) > 0
    ]
    right.plot(*zip(*used, strict=True), label="processor, evaluations included", linewidth=1)
    right.set(title=f"seconds a step (wall: median of {BIN})", xlabel="optimiser step", ylim=(0, None))
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--run", type=Path, default=Path("runs/soak"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--draw-only", type=Path, metavar="RUN", help="a run that is over; memory.csv is in --out")
    parser.add_argument("--override", nargs="*", default=[], help="Hydra overrides")
    options = parser.parse_args()
    run = options.draw_only or options.run
    metrics = run / "metrics.csv"
    if options.draw_only is None:
        job = [sys.executable, "-m", "src.train", "experiment=bicot_lora", "trainer.progress_bar=false"]
        own = [f"trainer.max_steps={options.steps}", f"run.dir={run}"]
        rows: list[dict[str, float]] = []
        code = watch([*job, *own, *options.override], metrics, rows)
        if code:
            sys.exit(code)
        write_csv(options.out / "memory.csv", with_steps(rows))
        write_csv(options.out / "seconds.csv", step_seconds(metrics))
    memory, seconds = read_csv(options.out / "memory.csv"), read_csv(options.out / "seconds.csv")
    draw(memory, seconds, options.out / "soak.png")
    for column, unit in (("training_mib", "MiB"), ("helpers_mib", "MiB")):
        print(f"{column}: {growth(memory, column):+.3f} {unit} a 100 steps after step {WARM_UP}")
    late = [row["seconds"] for row in seconds if row["step"] >= WARM_UP]
    third = max(1, len(late) // 3)
    first, last = statistics.median(late[:third]), statistics.median(late[-third:])
    print(f"seconds a step: {first:.3f} in the first third after step {WARM_UP}, {last:.3f} in the last")


if __name__ == "__main__":
    main()
