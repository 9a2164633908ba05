"""Both levels against the plan alone and the image alone; the KL stays on both levels in all three.

The warm start errs at either level: its plans misread, and it draws green triangles as squares. flaw.csv tells the
prompts of green triangles from the others.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from experiments.report import write_csv
from experiments.runner import Arm, Study, main

STUDY = Study(
    folder=Path(__file__).parent,
    arms=(Arm("both"), Arm("plan_only", ("experiment=plan_only",)), Arm("image_only", ("experiment=image_only",))),
    baseline="both",
)


def flaw(root: Path, arms: Iterable[str], seeds: Iterable[int], out: Path) -> None:
    """All-correct after training on the test prompts of green triangles, and on the others, for each run."""
    rows = []
    for name in arms:
        for seed in seeds:
            lines = (root / STUDY.name / f"{name}-seed{seed}" / "test_after.jsonl").read_text().splitlines()
            right: dict[bool, list[float]] = {True: [], False: []}
            for found in map(json.loads, lines):
                right["green triangle" in found["prompt"]].append(found["details"]["all_correct"])
            rows.append(
                {"arm": name, "seed": seed, "green_triangles": fmean(right[True]), "others": fmean(right[False])}
            )
            print(rows[-1])
    write_csv(out / "flaw.csv", rows)


if __name__ == "__main__":
    options = main(STUDY)
    flaw(options.root, options.arms, options.seeds, options.out)
