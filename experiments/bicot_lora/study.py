"""The main job, measured: several seeds of the README's command, then base and adapters over a sampling grid.

    python experiments/bicot_lora/study.py            # trains seeds 0 1 2, evaluates, writes CSV, PNG
    python experiments/bicot_lora/study.py --grid-only runs/study/seed0 runs/study/seed1 runs/study/seed2

The grid asks whether training did more than sharpen: the base gets every temperature and guidance scale too.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEMPERATURES = (1.0, 0.8, 0.6, 0.4, 0.2)
GUIDANCE = (1.0, 1.5, 2.0, 3.0)


def train(seed: int, folder: Path, overrides: Sequence[str]) -> float:
    """One run of the README's command with another seed; returns its wall seconds, start-up included."""
    command = [sys.executable, "-m", "src.train", "experiment=bicot_lora", f"run.seed={seed}", f"run.dir={folder}"]
    start = time.perf_counter()
    subprocess.run([*command, "trainer.progress_bar=false", *overrides], check=True)
    return time.perf_counter() - start


def grid(
    adapter: Path | None,
    overrides: Sequence[str],
    temperatures: Sequence[float] = TEMPERATURES,
    scales: Sequence[float] = GUIDANCE,
) -> Iterator[dict[str, object]]:
    """All-correct and reward on the test prompts for each temperature (both levels) and guidance scale."""
    from src import build
    from src.cli.compose import compose
    from src.training.held_out import evaluate
    from src.training.session import quiet
    from src.values import Sampling

    quiet()
    chosen = [] if adapter is None else [f"model.adapter={adapter}"]
    config = compose(["experiment=bicot_lora", *chosen, *overrides])
    data, rewards, policy = build.build_data(config), build.build_rewards(config), build.build_policy(config)
    settings, decoder = build.evaluation_settings(config), policy.decoder()
    for temperature, guidance in product(temperatures, scales):
        sampling = replace(settings.rollout, plan=Sampling(temperature), image=Sampling(temperature, guidance))
        result = evaluate(policy, decoder, rewards, data.test_records, replace(settings, rollout=sampling), "test")
        kinds = {f"all_correct/{kind}": figures["all_correct"] for kind, figures in result.by_kind().items()}
        means = result.means()
        yield {
            "temperature": temperature,
            "guidance": guidance,
            "all_correct": means["all_correct"],
            "reward": means["reward"],
            **kinds,
        }


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Rows of equal keys; numbers with four digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


def curve(folders: Sequence[Path], path: Path) -> None:
    """Validation all-correct and reward, training reward: one line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for folder in folders:
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        label = folder.name
        steps = [int(row["step"]) for row in rows if row["validation/all_correct"]]
        left.plot(
            steps,
            [float(row["validation/all_correct"]) for row in rows if row["validation/all_correct"]],
            marker="o",
            markersize=3,
            label=label,
        )
        trained = [(int(row["step"]), float(row["reward"])) for row in rows if row["reward"]]
        smooth = [statistics.mean(r for _, r in trained[max(0, i - 9) : i + 1]) for i in range(len(trained))]
        right.plot([step for step, _ in trained], smooth, label=label)
    for axis, title in (
        (left, "all-correct, validation prompts"),
        (right, "reward, training prompts (mean of 10 steps)"),
    ):
        axis.set(title=title, xlabel="optimiser step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def before_after(folder: Path, overrides: Sequence[str], path: Path, shown: int = 10) -> None:
    """The same prompts and noise with the base and with the adapter, side by side with their plans."""
    import textwrap

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from src import build
    from src.cli.compose import compose
    from src.training.callbacks.report import spread
    from src.training.held_out import pictures
    from src.training.session import quiet

    quiet()
    drawn = []
    for adapter in (None, folder / "adapter"):
        chosen = [] if adapter is None else [f"model.adapter={adapter}"]
        config = compose(["experiment=bicot_lora", *chosen, *overrides])
        data, rewards, policy = build.build_data(config), build.build_rewards(config), build.build_policy(config)
        records = spread(data.test_records, shown)
        plans, pixels = pictures(policy, policy.decoder(), records, build.evaluation_settings(config))
        drawn.append((plans, pixels, rewards(pixels, records).details["all_correct"].tolist()))
    # Two of each kind, as they stand in the file; no choosing by outcome.
    figure, axes = plt.subplots(2, shown, figsize=(1.75 * shown, 5.5))
    for row, (name, (plans, pixels, right)) in enumerate(zip(("before", "after"), drawn, strict=True)):
        for column in range(shown):
            axis = axes[row][column]
            axis.imshow(pixels[column].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            prompt = "\n".join(textwrap.wrap(records[column].prompt, 22)) + "\n" if row == 0 else ""
            axis.set_title(prompt, fontsize=8)
            verdict = "right" if right[column] else "wrong"
            axis.set_xlabel(
                "\n".join([verdict, *textwrap.wrap(plans[column], 25)]),
                fontsize=7,
                color="#1a7f37" if right[column] else "#b42318",
            )
        axes[row][0].set_ylabel(name, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(folders: Sequence[Path], walls: Sequence[float | None]) -> list[dict[str, object]]:
    """One row a seed from the summaries."""
    rows: list[dict[str, object]] = []
    for folder, wall in zip(folders, walls, strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        row: dict[str, object] = {
            "seed": summary["seed"],
            "steps": summary["steps"],
            "seconds_wall": wall if wall is not None else "",
            "seconds_total": summary["seconds_total"],
            "steps_per_minute": 60 / summary["seconds_per_step"],
            "best_step": summary["best_step"],
            "all_correct_before": summary["all_correct_before"],
            "all_correct_after": summary["all_correct_after"],
            "reward_before": summary["reward_before"],
            "reward_after": summary["reward_after"],
            "hardware": summary["hardware"],
            "git_commit": summary["git_commit"],
        }
        for kind, figures in summary["by_kind"].items():
            row[f"{kind}_before"] = figures["before"]["all_correct"]
            row[f"{kind}_after"] = figures["after"]["all_correct"]
        rows.append(row)
    return rows


def main() -> None:
    """Train, evaluate over the grid, write everything beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--grid-only", type=Path, nargs="+", metavar="RUN", help="finished runs to evaluate")
    parser.add_argument("--override", nargs="*", default=[], help="Hydra overrides for training and evaluation")
    options = parser.parse_args()
    folders = options.grid_only or [options.root / f"seed{seed}" for seed in options.seeds]
    walls: list[float | None] = [None] * len(folders)
    if not options.grid_only:
        walls = [train(seed, folder, options.override) for seed, folder in zip(options.seeds, folders, strict=True)]
    write_csv(options.out / "seeds.csv", report(folders, walls))
    curve(folders, options.out / "curve.png")
    before_after(folders[0], options.override, options.out / "before_after.png")
    rows = [{"weights": "base", **row} for row in grid(None, options.override)]
    for folder in folders:
        rows += [{"weights": folder.name, **row} for row in grid(folder / "adapter", options.override)]
        write_csv(options.out / "grid.csv", rows)
    for name in ("base", *(folder.name for folder in folders)):
        mine = [row for row in rows if row["weights"] == name]
        best = max(mine, key=lambda row: row["all_correct"])
        print(
            f"{name:8} best all-correct {best['all_correct']:.3f} at temperature {best['temperature']},"
            f" guidance {best['guidance']}"
        )


if __name__ == "__main__":
    main()
